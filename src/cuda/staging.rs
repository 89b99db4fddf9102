//! Copies between pageable host memory and the device, through two pinned halves.
//!
//! The copy engine reads pinned memory while the host already fills the other half. A half is not touched again before the
//! event behind its last copy has passed.

use super::driver::device_error;
use crate::error::Result;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, PinnedHostSlice, result};
use std::sync::Arc;

/// Bytes of a half: far above what a copy needs to reach the bus's full speed.
const HALF: usize = 4 << 20;

/// The two halves, and whose turn it is.
pub(super) struct Staging {
    halves: [Half; 2],
    turn: usize,
}

struct Half {
    memory: PinnedHostSlice<u8>,
    last_copy: CudaEvent,
}

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Staging> {
        let half = || -> std::result::Result<Half, DriverError> {
            // SAFETY: bytes; each is written by the host or by a copy before it is read. Cached (no flag), because downloads read it.
            #[allow(unsafe_code)]
            let memory = unsafe { context.alloc_pinned_with_flags(HALF, 0)? };
            Ok(Half { memory, last_copy: context.new_event(None)? })
        };
        let make = || Ok([half()?, half()?]);
        Ok(Staging { halves: make().map_err(|e| device_error("pin host memory", e))?, turn: 0 })
    }

    /// Copies `data` to device memory at `to`. The caller's memory is free at once, the copy happens in the stream's order.
    pub(super) fn upload(&mut self, stream: &CudaStream, data: &[u8], to: u64) -> Result<()> {
        for (index, piece) in data.chunks(HALF).enumerate() {
            self.send(stream, piece, to + (index * HALF) as u64)
                .map_err(|e| device_error("copy to its memory", e))?;
        }
        Ok(())
    }

    fn send(&mut self, stream: &CudaStream, piece: &[u8], to: u64) -> std::result::Result<(), DriverError> {
        let half = self.next();
        half.last_copy.synchronize()?;
        let memory = &mut half.memory.as_mut_slice()?[..piece.len()];
        memory.copy_from_slice(piece);
        // SAFETY: the half stays as it is until `last_copy` has passed, and lives as long as the stream.
        #[allow(unsafe_code)]
        unsafe {
            result::memcpy_htod_async(to, memory, stream.cu_stream())?;
        }
        half.last_copy.record(stream)
    }

    /// Copies device memory at `from` to `data`, and waits for it.
    pub(super) fn download(&mut self, stream: &CudaStream, from: u64, data: &mut [u8]) -> Result<()> {
        let mut waiting: Option<(usize, &mut [u8])> = None;
        for (index, piece) in data.chunks_mut(HALF).enumerate() {
            let turn = self.turn;
            self.ask(stream, from + (index * HALF) as u64, piece.len())
                .map_err(|e| device_error("copy from its memory", e))?;
            if let Some((turn, piece)) = waiting.replace((turn, piece)) {
                self.receive(turn, piece)?;
            }
        }
        waiting.map_or(Ok(()), |(turn, piece)| self.receive(turn, piece))
    }

    fn ask(&mut self, stream: &CudaStream, from: u64, len: usize) -> std::result::Result<(), DriverError> {
        let half = self.next();
        half.last_copy.synchronize()?;
        let memory = &mut half.memory.as_mut_slice()?[..len];
        // SAFETY: nobody reads or writes the half until `last_copy` has passed, and it lives as long as the stream.
        #[allow(unsafe_code)]
        unsafe {
            result::memcpy_dtoh_async(memory, from, stream.cu_stream())?;
        }
        half.last_copy.record(stream)
    }

    fn receive(&mut self, turn: usize, piece: &mut [u8]) -> Result<()> {
        let half = &mut self.halves[turn];
        let read = || -> std::result::Result<&[u8], DriverError> {
            half.last_copy.synchronize()?;
            half.memory.as_slice()
        };
        let memory = read().map_err(|e| device_error("copy from its memory", e))?;
        piece.copy_from_slice(&memory[..piece.len()]);
        Ok(())
    }

    fn next(&mut self) -> &mut Half {
        self.turn ^= 1;
        &mut self.halves[self.turn ^ 1]
    }
}
