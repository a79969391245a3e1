"""rlpg: policy gradients whose gradients are proven and whose runs survive."""

from rlpg.registration import register_environments

__version__ = "0.1.0"

register_environments()
