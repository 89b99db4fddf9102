//! Copies between pageable host memory and the device, through pinned memory.
//!
//! The copy engine reads one pinned slot while the host already fills the next. A slot is not touched again before the event behind its
//! last copy has passed. Copies stand in the stream behind the kernels asked for before them; small ones (tables, tokens) have a ring of many
//! slots, so that the host runs ahead of the kernels by as many.

use super::driver::device_error;
use crate::error::Result;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, PinnedHostSlice, result};
use std::sync::Arc;

/// Bytes of a large slot: far above what a copy needs to reach the bus's full speed.
const LARGE: usize = 4 << 20;

/// Bytes of a small slot, and their number: the copies of a few layers.
const SMALL: usize = 32 << 10;
const SMALL_SLOTS: usize = 128;

/// The pinned memory of a stream.
pub(super) struct Staging {
    small: Ring,
    large: Ring,
}

/// Slots that are used in turn.
struct Ring {
    slots: Vec<Slot>,
    turn: usize,
}

struct Slot {
    memory: PinnedHostSlice<u8>,
    last_copy: CudaEvent,
}

impl Ring {
    fn new(context: &Arc<CudaContext>, slots: usize, bytes: usize) -> std::result::Result<Ring, DriverError> {
        let slot = |_| {
            // SAFETY: bytes; each is written by the host or by a copy before it is read. Cached (no flag), because downloads read it.
            #[allow(unsafe_code)]
            let memory = unsafe { context.alloc_pinned_with_flags(bytes, 0)? };
            Ok(Slot { memory, last_copy: context.new_event(None)? })
        };
        Ok(Ring { slots: (0..slots).map(slot).collect::<std::result::Result<_, _>>()?, turn: 0 })
    }

    /// The slot whose turn it is.
    fn next(&mut self) -> &mut Slot {
        let turn = self.turn;
        self.turn = (turn + 1) % self.slots.len();
        &mut self.slots[turn]
    }
}

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Staging> {
        let make = || {
            Ok(Staging {
                small: Ring::new(context, SMALL_SLOTS, SMALL)?,
                large: Ring::new(context, 2, LARGE)?,
            })
        };
        make().map_err(|e| device_error("pin host memory", e))
    }

    /// Copies `data` to device memory at `to`. The caller's memory is free at once, the copy happens in the stream's order.
    pub(super) fn upload(&mut self, stream: &CudaStream, data: &[u8], to: u64) -> Result<()> {
        for (index, piece) in data.chunks(LARGE).enumerate() {
            self.send(stream, piece, to + (index * LARGE) as u64)
                .map_err(|e| device_error("copy to its memory", e))?;
        }
        Ok(())
    }

    fn send(&mut self, stream: &CudaStream, piece: &[u8], to: u64) -> std::result::Result<(), DriverError> {
        let ring = if piece.len() <= SMALL { &mut self.small } else { &mut self.large };
        let slot = ring.next();
        slot.last_copy.synchronize()?;
        let memory = &mut slot.memory.as_mut_slice()?[..piece.len()];
        memory.copy_from_slice(piece);
        // SAFETY: the slot stays as it is until `last_copy` has passed, and lives as long as the stream.
        #[allow(unsafe_code)]
        unsafe {
            result::memcpy_htod_async(to, memory, stream.cu_stream())?;
        }
        slot.last_copy.record(stream)
    }

    /// Copies device memory at `from` to `data`, and waits for it.
    pub(super) fn download(&mut self, stream: &CudaStream, from: u64, data: &mut [u8]) -> Result<()> {
        let mut waiting: Option<(usize, &mut [u8])> = None;
        for (index, piece) in data.chunks_mut(LARGE).enumerate() {
            let turn = self.large.turn;
            self.ask(stream, from + (index * LARGE) as u64, piece.len())
                .map_err(|e| device_error("copy from its memory", e))?;
            if let Some((turn, piece)) = waiting.replace((turn, piece)) {
                self.receive(turn, piece)?;
            }
        }
        waiting.map_or(Ok(()), |(turn, piece)| self.receive(turn, piece))
    }

    fn ask(&mut self, stream: &CudaStream, from: u64, len: usize) -> std::result::Result<(), DriverError> {
        let slot = self.large.next();
        slot.last_copy.synchronize()?;
        let memory = &mut slot.memory.as_mut_slice()?[..len];
        // SAFETY: nobody reads or writes the slot until `last_copy` has passed, and it lives as long as the stream.
        #[allow(unsafe_code)]
        unsafe {
            result::memcpy_dtoh_async(memory, from, stream.cu_stream())?;
        }
        slot.last_copy.record(stream)
    }

    fn receive(&mut self, turn: usize, piece: &mut [u8]) -> Result<()> {
        let slot = &mut self.large.slots[turn];
        let read = || -> std::result::Result<&[u8], DriverError> {
            slot.last_copy.synchronize()?;
            slot.memory.as_slice()
        };
        let memory = read().map_err(|e| device_error("copy from its memory", e))?;
        piece.copy_from_slice(&memory[..piece.len()]);
        Ok(())
    }
}
