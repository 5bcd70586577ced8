"""The phantoms of the tests, each made once per process."""

import functools

from IconRegistrationLib.demo.phantom import Phantom, make_phantom


@functools.cache
def phantom(size: int = 32, modality: str = "ct", seed: int = 0) -> Phantom:
    """Return the phantom that `make_phantom` makes; its arrays cannot be written to, because others hold them."""
    made = make_phantom(seed, size, modality)
    for image in (made.fixed, made.moving):
        image.array.setflags(write=False)
    for layer in (*made.fixed_segmentation.layers, *made.moving_segmentation.layers):
        layer.setflags(write=False)
    return made
