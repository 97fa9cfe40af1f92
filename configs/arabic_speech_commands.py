"""TC-ResNet8 on Arabic Speech Commands (Ghandoura et al. 2021).

40 words of 30 speakers, one second each, 16 kHz; the six speakers of `test` are
in no other split, and 18 are in `train`, 6 in `val`. Commands:

    python scripts/prepare_data.py --audio_folder=DIR \
      --name=arabic_speech_commands
    python -m ws_jax.main --config=configs/arabic_speech_commands.py \
      --workdir=workdirs/arabic_speech_commands

Arms: `:norm=batch,ws=false` is BN, `:ws=false` is GN. Other networks:
`:model=tc_resnet14`, `:model=ds_cnn_s,bands=10,window_ms=40,hop_ms=20`,
`:model=res15,num_groups=9`. Rates are tuned on `--config.data.eval_split=val`.

A linear probe on log-mel features has 84 %. A pilot of GN+WS, one seed, with
`epochs=20`: 94.5 % on val and 96.9 % on test, 100 seconds of processor time.
The arms at their own best rates are not measured yet.
"""

from ws_jax import config as base


def get_config(arg=""):
  config = base.default()
  base.apply(
    config, {"task.name": "keyword_spotting", "model.name": "tc_resnet8"}
  )
  config.data.name = "arabic_speech_commands"
  config.data.batch_size = 64
  config.optim.base_learning_rate = 0.4  # 0.1 at batch 64
  config.optim.schedule = "one_cycle"
  config.train.epochs = 40.0
  config.train.eval_every_epochs = 5.0
  config.train.checkpoint_every_epochs = 5.0
  return base.variant(config, arg)
