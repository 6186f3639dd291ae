"""What the compressor, its pre-training, pruning and the selector are worth, on the probe world: ``docs/ablations.md``.

To read in this order: ``world``, ``data``, ``replies``, ``arms``; ``figures``, ``tables``, ``cost``, ``plans``; then
``jobs`` and the command in ``__main__``. ``selector`` and ``heatmap`` (with ``heatmap_table``) are tables of their own,
beside the plans.
"""
