//! Parity with transformers and Pillow, by reference tensors.
