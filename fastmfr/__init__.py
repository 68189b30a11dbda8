"""fastmfr: Meta Face Recognition. Train on several domains, deploy in ones nobody has seen.

Only the version lives here: kernels are imported through this package, so importing more would go in a circle.
"""

__version__ = "0.1.0"
