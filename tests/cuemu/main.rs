//! The emulated CUDA driver itself (`tools/cuemu`): that it catches what it claims to catch, and lets pass what is right.
//!
//! A test starts this program again for each mode of the emulator ([`child`]), which runs one case of it.

#[path = "../../tools/cuemu/cuemu.rs"]
mod cuemu;
#[allow(unsafe_code)]
mod driver;

mod bugs;
#[allow(unsafe_code)]
mod child;
#[allow(unsafe_code)]
mod cublaslt;
#[allow(unsafe_code)]
mod limits;
#[allow(unsafe_code)]
mod ptx;
mod working;
