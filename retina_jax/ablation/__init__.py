"""The paper's ablation studies (arXiv:1708.02002, Table 1) on any experiment."""
