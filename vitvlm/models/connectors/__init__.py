"""Connectors, called by name: what leads from an image encoder's tokens to a language model."""

from vitvlm.models.connectors import average_pool as average_pool  # each kind registers itself
from vitvlm.models.connectors import cross_attention as cross_attention
from vitvlm.models.connectors import none as none
from vitvlm.models.connectors import pixel_shuffle as pixel_shuffle
from vitvlm.models.connectors import projector as projector
from vitvlm.models.connectors import qformer as qformer
from vitvlm.models.connectors import resampler as resampler
from vitvlm.models.connectors.base import CONNECTORS, Connector, ConnectorOutput, build_connector

__all__ = ["CONNECTORS", "Connector", "ConnectorOutput", "build_connector"]
