"""Sources of labelled images, operations on them, and batches: deterministic, resumable, without TensorFlow.

source = sources.open("tfds:fashion_mnist", "train")
stream = batches.train_batches(source, "decode(1)|flip|normalize", batch_size=128, seed=0)
batch = next(stream)  # image [B, H, W, C], label [B], example_mask [B], index [B]
"""
