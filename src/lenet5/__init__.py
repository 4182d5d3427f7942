"""LeNet-5 on FashionMNIST, from convolution to a versioned ONNX model."""
