//! Which checkpoint, on which device.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::check::{Checked, count, if_set};

/// The checkpoint to load.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Model")]
pub struct ModelOptions {
    /// Hugging Face checkpoint: a folder, or ORG/NAME from the local Hugging Face cache (nothing is downloaded)
    #[arg(long, visible_alias = "model_name_or_path", value_name = "DIR|ORG/NAME")]
    pub model: String,

    /// Jinja chat template to use instead of the checkpoint's own
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
}

/// Where and in what precision to compute.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Hardware")]
pub struct HardwareOptions {
    /// Device: auto, cpu, cuda or cuda:N (auto takes the first GPU, or the CPU where there is none)
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,

    /// Storage type of weights and activations (auto: f32 on the CPU, bf16 on a GPU); float32 and bfloat16 are
    /// accepted too
    #[arg(long, visible_alias = "torch_dtype", value_enum, default_value = "auto", value_name = "TYPE")]
    pub dtype: DtypeChoice,

    /// CPU threads [default: all cores]; the result does not depend on it
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

impl HardwareOptions {
    pub(super) fn check(&self) -> Checked {
        if_set("threads", self.threads, |option, value| count(option, value, 1024))
    }
}

/// The device asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU, or the CPU where there is none.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this ordinal.
    Cuda(usize),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The storage type asked for.
#[derive(clap::ValueEnum, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum DtypeChoice {
    /// f32 on the CPU, bf16 on a GPU.
    Auto,
    /// 32-bit floats.
    #[value(aliases = ["float32", "fp32"])]
    F32,
    /// bfloat16.
    #[value(aliases = ["bfloat16"])]
    Bf16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_round_trip() {
        for name in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert!("gpu".parse::<DeviceChoice>().is_err());
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
    }
}
