"""CIFAR networks, SSD, and a registry that also reaches torchvision, timm and a user's own file."""

from clusterprune.models.googlenet import GoogLeNet, Inception
from clusterprune.models.registry import build, names, resolve
from clusterprune.models.resnet import BasicBlock, PaddedShortcut, ResNet
from clusterprune.models.spec import ModelSpec
from clusterprune.models.ssd import SSD
from clusterprune.models.vgg import VGG
from clusterprune.models.weights import load_weights

__all__ = [
    "SSD",
    "VGG",
    "BasicBlock",
    "GoogLeNet",
    "Inception",
    "ModelSpec",
    "PaddedShortcut",
    "ResNet",
    "build",
    "load_weights",
    "names",
    "resolve",
]
