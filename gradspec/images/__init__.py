"""Folders of pictures as batches of network input, with labels where the folder tells them."""

from .folder import PictureFolder, load_images
from .labels import PictureError
from .preprocessing import Preprocess, as_rgb, described, moments, pixels_of

__all__ = ["PictureError", "PictureFolder", "Preprocess", "as_rgb", "described", "load_images", "moments", "pixels_of"]
