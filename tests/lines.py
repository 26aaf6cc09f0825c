"""A reporter for tests that keeps what is said."""

from retina_jax.progress import Reporter


class Lines(Reporter):
    """Keeps what is said and noted, in ``lines``."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, line):
        self.lines.append(line)

    def note(self, line, label="note"):
        self.lines.append(line)
