"""Rules of complex numbers and of Fourier transforms.

A complex displaced tensor has a complex difference. Only functions that are registered in ``COMPLEX`` take it.
"""

from nntk.propagation.rules.spectra import complex_numbers, fourier

__all__ = ["complex_numbers", "fourier"]
