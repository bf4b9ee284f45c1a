"""The step monitor in Hugging Face's Trainer and in Lightning, the real ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smoldiag import runs

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
pytestmark = pytest.mark.slow

HUGGING_FACE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from smoldiag.monitor import callbacks
net = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                   num_key_value_heads=2, vocab_size=64))
rows = [{"input_ids": torch.arange(16), "labels": torch.arange(16)} for _ in range(48)]
arguments = TrainingArguments(output_dir=sys.argv[2], per_device_train_batch_size=4, gradient_accumulation_steps=2,
                              max_steps=6, report_to=[], use_cpu=True, save_strategy="no", logging_steps=1,
                              disable_tqdm=True)
Trainer(net, arguments, train_dataset=rows, callbacks=[callbacks.hugging_face(sys.argv[1])]).train()
"""
LIGHTNING = """
import sys, torch
import lightning.pytorch as lightning
from torch.utils.data import DataLoader, TensorDataset
from smoldiag.monitor import callbacks
class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
    def forward(self, x):
        return self.layer(x)
    def training_step(self, batch, number):
        return self(batch[0]).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
trainer = lightning.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False,
                            enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[2],
                            callbacks=[callbacks.lightning(sys.argv[1])])
trainer.fit(Net(), DataLoader(TensorDataset(torch.ones(48, 8)), batch_size=4))
"""


@pytest.mark.parametrize(("library", "script"), [("transformers", HUGGING_FACE), ("lightning", LIGHTNING)])
def test_a_callback_watches_the_trainer_of(library: str, script: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    command = [sys.executable, "-c", script, str(tmp_path / "run"), str(tmp_path / "out")]
    done = subprocess.run(command, env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    run = runs.read(tmp_path / "run")
    assert [s.step for s in run.steps] == list(range(6))
    for s in run.steps:
        assert {"data", "forward", "backward", "optimizer"} <= set(s.phases_us), s
        assert sum(s.phases_us.values()) == pytest.approx(s.step_us, rel=1e-3)
