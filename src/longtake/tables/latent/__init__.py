"""What latents between question and answer are worth, on questions of one to four hops: ``docs/latent.md``.

To read in this order: ``world``, ``arms``, ``cost``, ``plans``, ``tables``, ``curves``, then the command in
``__main__``.
"""
