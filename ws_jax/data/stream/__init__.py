"""Images that are decoded and augmented while the model trains.

Start reading at `opened.open_stream`, which finds the images, and go on with
`source.StreamSource`, from which the training loop takes them. `records.py` and
`shards.py` read the files, `crops.py` and `rand_augment.py` make pixels of
them, and `loader.py` has all that is Grain: the workers and their queues, and
why it is Grain and not tf.data. `prepare.py` packs a folder into large files.
"""

from ws_jax.data.stream.opened import Stream, open_stream
from ws_jax.data.stream.options import Options

__all__ = ["Options", "Stream", "open_stream"]
