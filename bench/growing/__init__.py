"""The parts of bench/growth.py: what is measured at growing sizes, and the picture of it."""
