"""Generated pictures with object masks, and small networks trained on them: a laboratory that needs no download."""

from gradspec.demo.nets import BUILDERS, DemoNet, load, names, vgg
from gradspec.demo.pictures import CLASSES, Pictures, pictures

__all__ = ["BUILDERS", "CLASSES", "DemoNet", "Pictures", "load", "names", "pictures", "vgg"]
