"""How large a request may be, how long it may take, and how many may wait."""

from __future__ import annotations

import dataclasses

from retina_jax.errors import UserError

MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a server; each is a flag of ``retina-jax serve``."""

    body: float = 32.0
    """Maximum size of a request body, MiB."""
    images: int = 16
    """Maximum number of images in a request."""
    megapixels: float = 50.0
    """Maximum size of an image, millions of pixels, as stated in its header."""
    queue: int = 64
    """Maximum number of images that wait for the network, and of open requests."""
    seconds: float = 30.0
    """Maximum time from the headers of a request to its response."""
    stop_seconds: float = 20.0
    """Time that open requests have to finish after a signal."""

    def __post_init__(self):
        """Raises `UserError` for a value out of range."""
        for name in ("images", "queue"):
            if getattr(self, name) < 1:
                raise UserError(f"--max-{name}={getattr(self, name)} must be 1 or more")
        for name in ("body", "megapixels", "seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"--max-{name}={getattr(self, name):g} must be above 0")
        if not self.stop_seconds >= 0:
            raise UserError(f"--stop-seconds={self.stop_seconds:g} must be 0 or more")
        if self.queue < self.images:
            raise UserError(
                f"--max-queue={self.queue} is less than --max-images={self.images}, so a request "
                f"with that many images would always be refused; set --max-queue={self.images}"
            )

    @property
    def body_bytes(self) -> int:
        return int(self.body * MEBIBYTE)

    @property
    def pixels(self) -> int:
        return int(self.megapixels * 1e6)
