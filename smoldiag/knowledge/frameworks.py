"""The same fix as the usual training programs spell it: cause -> (program, what to set).

Names are those of PyTorch 2.9, torchtitan's configuration, transformers' TrainingArguments, Accelerate, Lightning 2.x,
Megatron-LM's arguments and nanotron's configuration.
"""

from collections.abc import Mapping

LINES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "dataloader-stall": (
        (
            "plain PyTorch",
            "DataLoader(..., num_workers=8, prefetch_factor=4, persistent_workers=True, pin_memory=True)",
        ),
        ("Hugging Face's Trainer", "dataloader_num_workers=8, dataloader_prefetch_factor=4"),
        ("Lightning", "the arguments of the DataLoader that train_dataloader() gives"),
        ("Megatron-LM", "--num-workers 8"),
        ("nanotron", "num_loading_workers: 8, under data of each stage"),
    ),
    "gc-stragglers": (
        ("plain PyTorch", "gc.freeze(); gc.disable(); and gc.collect(1) every 50 steps"),
        ("torchtitan", "--training.gc_freq 50"),
        ("Megatron-LM", "--manual-gc --manual-gc-interval 50"),
        ("Hugging Face's Trainer, Lightning", "the same from a callback at the end of each 50th step"),
    ),
    "checkpoint-stall": (
        ("plain FSDP2", "torch.distributed.checkpoint.async_save(...)"),
        ("torchtitan", "--checkpoint.async_mode async_with_pinned_mem --checkpoint.interval 500"),
        ("Hugging Face's Trainer", "save_steps=500; Accelerate's fsdp_state_dict_type: SHARDED_STATE_DICT"),
        ("Lightning", "ModelCheckpoint(every_n_train_steps=500), Trainer(plugins=[AsyncCheckpointIO()])"),
        ("Megatron-LM", "--async-save --save-interval 500"),
        ("nanotron", "checkpoint_interval: 500, under checkpoints"),
    ),
    "slow-link": (
        ("plain FSDP2", "fully_shard(..., mesh=init_device_mesh('cuda', (HOSTS, GPUS))): shard within a host only"),
        ("torchtitan", "--parallelism.data_parallel_replicate_degree HOSTS"),
        ("Accelerate", "parallelism_config: dp_replicate_size: HOSTS, dp_shard_size: GPUS"),
        ("Lightning", "ModelParallelStrategy(data_parallel_size=HOSTS, ...), fully_shard with that mesh"),
    ),
    "uneven-data-across-ranks": (
        ("plain PyTorch", "DistributedSampler(..., drop_last=True); or with DDP alone: with model.join(): ..."),
        ("torchtitan", "--training.steps N"),
        ("Hugging Face's Trainer", "max_steps=N, dataloader_drop_last=True"),
        ("Accelerate", "Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=True))"),
        ("Lightning", "Trainer(max_steps=N), DataLoader(..., drop_last=True)"),
    ),
}
