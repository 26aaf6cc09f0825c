"""Jobs that run a command of this program on GKE, Cloud TPU VMs or a SLURM cluster."""
