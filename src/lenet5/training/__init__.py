"""How a model is trained: the step, the engines that run it, the epochs, checkpoints, replicas."""
