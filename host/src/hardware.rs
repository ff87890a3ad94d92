//! The name and the memory of the device that computes.

use tch::Device;

use crate::memory;
use crate::nvml::Gpu;

/// Returns the name of a device's processor; none where the system does not report it.
pub fn name(device: Device) -> Option<String> {
    match device {
        Device::Cuda(index) => Gpu::of_cuda(index)?.name(),
        _ => processor(&std::fs::read_to_string("/proc/cpuinfo").ok()?),
    }
}

/// Returns the bytes of a device's memory; none where the system does not report them.
pub fn memory(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => Gpu::of_cuda(index)?.memory(),
        _ => memory::total(),
    }
}

/// Returns the name of the processor in the text of `/proc/cpuinfo`.
fn processor(text: &str) -> Option<String> {
    let value = |line: &str| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned());
    text.lines().find_map(value).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_has_its_name() {
        let text = "processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC 9B14\nmodel name\t: another\n";
        assert_eq!(processor(text).as_deref(), Some("AMD EPYC 9B14"));
        assert_eq!(processor("processor : 0\n"), None);
    }
}
