"""What convolution and pooling compute, the learned edge kernel, and LeNet-5."""
