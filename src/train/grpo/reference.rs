//! The reference policy, and how it follows the policy.
//!
//! Every so many optimiser steps `ref <- alpha * policy + (1 - alpha) * ref`, as TRL's `sync_ref_model` has it (TR-DPO,
//! arXiv 2404.09656); with alpha = 1 the policy itself becomes the reference (the reset of ProRL, arXiv 2505.24864), to the
//! bit. The optimiser's moments may begin anew at the same time.
//!
//! It happens before the step whose number is a multiple of the interval, so at the end of the interval's last step but
//! for what that step reports. The blend is made on the host in f32, and rounded once where the model is stored in less.

use crate::checkpoint::SavedReference;
use crate::cuda::Purpose;
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::tensor::{DType, Tensor};
use std::sync::Arc;

/// When and how the reference follows the policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReferenceSync {
    /// Optimiser steps from one time to the next.
    pub every: u64,
    /// The policy's share, above 0 and at most 1.
    pub mixup_alpha: f64,
    /// Whether the optimiser's moments begin anew.
    pub resets_optimizer: bool,
}

/// The weights that the KL is measured from.
pub(super) struct Reference {
    pub(super) params: Arc<Params>,
    /// The step before which it last followed the policy; 0 for the start of the run.
    synced: u64,
}

impl Reference {
    /// The policy as it is now.
    pub(super) fn of(policy: &Params) -> Result<Reference> {
        Ok(Reference { params: Arc::new(policy.detached()?), synced: 0 })
    }

    /// Whether it follows before `step`, and has not yet.
    pub(super) fn is_due(&self, sync: &ReferenceSync, step: u64) -> bool {
        step.is_multiple_of(sync.every) && step > self.synced
    }

    /// Follows the policy before `step`. Frozen parameters are the policy's anyway.
    ///
    /// # Errors
    /// Those of device memory.
    pub(super) fn follow(&mut self, policy: &Params, alpha: f64, step: u64) -> Result<()> {
        let share = alpha as f32;
        let own = Arc::make_mut(&mut self.params);
        for ((_, p), (_, r)) in policy.iter().zip(own.iter_mut()).filter(|((_, p), _)| p.trainable) {
            if alpha == 1.0 {
                r.value = p.value.detached()?;
                continue;
            }
            let (dtype, device) = (r.value.dtype(), r.value.device());
            let (policy, reference) = (p.value.to_cpu()?, r.value.to_cpu()?);
            let (policy, reference) = (policy.to_f32(), reference.to_f32());
            let pairs = policy.iter().zip(reference.iter());
            // In this form what has not moved stays as it is, to the bit.
            let blend: Vec<f32> = pairs.map(|(p, r)| r + share * (p - r)).collect();
            r.value =
                Tensor::new(r.value.shape(), blend)?.to_dtype(dtype).to_device(&device, Purpose::Weights)?;
        }
        self.synced = step;
        Ok(())
    }

    /// What a checkpoint has to hold of it; nothing before it has followed for the first time.
    ///
    /// # Errors
    /// Those of copying device memory.
    pub(super) fn saved(&self) -> Result<Option<SavedReference>> {
        if self.synced == 0 {
            return Ok(None);
        }
        let mut host = self.params.clone();
        if host.device().gpu().is_some() {
            let mut copies = Params::default();
            copies.clone_from(&self.params);
            for (_, p) in copies.iter_mut() {
                p.value = p.value.to_cpu()?.to_dtype(DType::F32);
            }
            host = Arc::new(copies);
        }
        Ok(Some(SavedReference { synced: self.synced, weights: host }))
    }

    /// Puts the weights of a checkpoint in place.
    ///
    /// # Errors
    /// [`Error::Input`] for weights of another model; those of device memory.
    pub(super) fn restore(&mut self, synced: u64, weights: Vec<(String, Vec<f32>)>) -> Result<()> {
        let own = Arc::make_mut(&mut self.params);
        let trained = own.iter().filter(|(_, r)| r.trainable).count();
        if trained != weights.len() {
            return Err(Error::Input(format!(
                "the checkpoint holds {} tensors of the reference, and this run trains {trained}",
                weights.len()
            )));
        }
        for (name, values) in weights {
            let found = own.iter_mut().find(|(_, r)| r.name == name && r.value.len() == values.len());
            let Some((_, r)) = found else {
                return Err(Error::Input(format!(
                    "the checkpoint's reference has {} values of {name:?}, which do not fit the model of this run",
                    values.len()
                )));
            };
            let (dtype, device) = (r.value.dtype(), r.value.device());
            r.value =
                Tensor::new(r.value.shape(), values)?.to_dtype(dtype).to_device(&device, Purpose::Weights)?;
        }
        self.synced = synced;
        Ok(())
    }
}
