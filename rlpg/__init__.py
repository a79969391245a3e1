"""rlpg: policy gradients whose gradients are proven and whose runs survive."""

__version__ = "0.1.0"
