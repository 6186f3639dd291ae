"""What training on puzzles is worth: held-out puzzles, other questions, rewards and methods: ``docs/mvp.md``.

To read in this order: ``site``; ``held``; ``variants``, ``rewards``; ``exam``, ``transfer_arms``, ``transfer``; then
the command in ``__main__``. The recipe that they ask about is ``longtake train mvp``: ``recipes/mvp.py``.
"""
