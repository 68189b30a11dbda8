"""fastmfr: Meta Face Recognition. Train on several domains, deploy in ones nobody has seen.

Only the version lives here: kernels are imported through this package, so importing more would go in a circle.
"""

from pkgutil import extend_path

# In a clone after `pip install .`, this folder hides the installed package, which alone has the compiled extension and
# the kernels; they are then found there all the same.
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
