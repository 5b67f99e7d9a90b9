"""Datasets: kinds, examination, decoding, prepared arrays. No torch but where torchvision reads CIFAR."""
