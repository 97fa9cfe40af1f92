"""TC-ResNet8 on Free Spoken Digit: ten digits, one of five speakers left out.

8 kHz; clips have 0.14 to 2.28 s, half of them under 0.4. The left-out speaker
is theo unless `train_split` and `eval_split` say otherwise. Command, after
`python scripts/prepare_data.py spoken_digit --seconds=1`:

    python -m ws_jax.main --config=configs/spoken_digit.py \
      --workdir=workdirs/spoken_digit

Not measured yet.
"""

from ws_jax import config as base


def get_config(arg=""):
  config = base.default()
  base.apply(
    config, {"task.name": "keyword_spotting", "model.name": "tc_resnet8"}
  )
  config.data.name = "spoken_digit"
  config.data.train_split = "without-theo"
  config.data.eval_split = "only-theo"
  config.data.batch_size = 64
  config.task.sample_rate = 8000
  # Half of the clips are shorter than four tenths of a second.
  config.task.shift_ms = 50.0
  config.task.time_mask_ms = 100.0
  config.optim.base_learning_rate = 0.4  # 0.1 at batch 64
  config.optim.schedule = "one_cycle"
  config.train.epochs = 40.0
  config.train.eval_every_epochs = 10.0
  return base.variant(config, arg)
