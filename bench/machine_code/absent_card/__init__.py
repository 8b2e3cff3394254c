"""A card that is not there: Triton's own launches go to a driver that launches nothing, and counts and checks them.

``driver.c`` is that driver, and ``card.py`` puts it in NVIDIA's place. Tensors on the device ``"meta"`` stand for those
of the card: they have shapes and no numbers, so that a read by the host is an error, and operators of PyTorch take the
host about as long as on a card. What is left of a call is the host's own work: ``nntk-bench predict`` measures it.
"""
