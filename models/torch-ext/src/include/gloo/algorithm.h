// ProcessGroupGloo.hpp includes Gloo's headers, which PyTorch's wheels lack. It holds Gloo's types by pointer alone, so that
// declarations suffice; the classes are in libtorch_cpu.
#pragma once
