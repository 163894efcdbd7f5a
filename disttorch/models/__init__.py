"""Well-known models, one file each, in the public API alone.

The files are ordinary PyTorch code: with ``disttorch`` replaced by ``torch`` they run there, and
the tests compare the two. Names of parameters of ResNet and VGG are torchvision's.
"""

from .bert import BERT, BERTForPreTraining
from .dcn import DeepCross
from .din import DIN
from .dlrm import DLRM
from .dqn import ActorCritic, AtariQNetwork, QNetwork
from .gan import Discriminator, Generator
from .gpt import GPT
from .lstm_lm import LSTMLanguageModel
from .resnet import ResNet, resnet18, resnet34, resnet50
from .seq2seq import Seq2Seq
from .unet import UNet
from .vae import VAE
from .vgg import VGG, vgg11, vgg16
from .yolo import YOLO

__all__ = [
    "BERT", "DIN", "DLRM", "GPT", "VAE", "VGG", "YOLO", "ActorCritic", "AtariQNetwork",
    "BERTForPreTraining", "DeepCross", "Discriminator", "Generator", "LSTMLanguageModel",
    "QNetwork", "ResNet", "Seq2Seq", "UNet", "resnet18", "resnet34", "resnet50", "vgg11", "vgg16",
]
