"""DS-CNN-S on Speech Commands as TFDS has it: ten words, silence, unknown.

Features and network of Zhang et al. 2017 (1711.07128), but log-mel bands where
they have MFCC. TFDS names no speakers; its splits have none in common. Command,
after `python scripts/prepare_data.py speech_commands`:

    python -m ws_jax.main --workdir=workdirs/speech_commands \
      --config=configs/speech_commands.py:norm=batch,ws=false

Published for BN: 94.4 % (DS-CNN-S), 95.4 % (-L). Not run here: no copy of
Speech Commands could be had.
"""

from ws_jax import config as base


def get_config(arg=""):
  config = base.default()
  base.apply(
    config, {"task.name": "keyword_spotting", "model.name": "ds_cnn_s"}
  )
  config.data.name = "speech_commands"
  config.data.batch_size = 100
  config.task.bands = 10
  config.task.window_ms = 40.0
  config.task.hop_ms = 20.0
  config.optim.base_learning_rate = 0.25  # 0.1 at batch 100
  config.train.epochs = 35.0
  return base.variant(config, arg)
