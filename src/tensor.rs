//! Contiguous row-major tensors.
//!
//! A tensor is immutable and cheap to clone (shared storage). There are no strides, no implicit broadcast
//! and no hidden conversion; content changes only through [`Tensor::make_mut`], which proves (or makes) sole
//! ownership. There is one exception: on a GPU the parameters that are trained are views into the optimiser's arena
//! ([`Optimiser`](crate::optim::Optimiser)), and its step changes them in place. What was asked for before the step,
//! in the order of the one stream, sees the old weights, what is asked for after it the new ones; so nothing that was
//! kept of a forward pass may outlive the step.

#[allow(unsafe_code)]
mod cuda;
pub use cuda::DeviceReal;
pub mod device;
pub mod dtype;
pub mod storage;

pub use device::{Device, Placement};
pub use dtype::{DType, Real};

use crate::error::{Error, Result};
use half::bf16;
use std::borrow::Cow;
use std::sync::Arc;
use storage::Storage;

/// Runs `$body` with the type alias `$R` standing for the type that arithmetic on `$dtype` runs in.
#[macro_export]
macro_rules! dispatch {
    ($dtype:expr, $R:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 | $crate::tensor::DType::Bf16 => {
                type $R = f32;
                $body
            }
            $crate::tensor::DType::F64 => {
                type $R = f64;
                $body
            }
        }
    };
}

/// A shape and its elements.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Arc<Storage>,
}

impl Tensor {
    /// Wraps elements in the type they have. Fails when the count is not the shape's.
    pub fn new<R: Real>(shape: &[usize], data: Vec<R>) -> Result<Tensor> {
        Tensor::with_storage(shape, R::store(data))
    }

    /// Elements computed in `R`, stored as `dtype`: for bf16 this is the rounding point.
    pub fn rounded<R: Real>(shape: &[usize], data: Vec<R>, dtype: DType) -> Result<Tensor> {
        let storage = match dtype {
            DType::Bf16 => Storage::Bf16(data.iter().map(|x| bf16::from_f32(x.f64() as f32)).collect()),
            _ => R::store(data),
        };
        if storage.dtype() != dtype {
            return Err(Error::Internal(format!(
                "{} results stored as {}",
                storage.dtype().name(),
                dtype.name()
            )));
        }
        Tensor::with_storage(shape, storage)
    }

    /// All zeros.
    pub fn zeros(shape: &[usize], dtype: DType) -> Tensor {
        let n = shape.iter().product();
        let storage = match dtype {
            DType::F32 => Storage::F32(vec![0.0; n]),
            DType::F64 => Storage::F64(vec![0.0; n]),
            DType::Bf16 => Storage::Bf16(vec![bf16::ZERO; n]),
        };
        Tensor { shape: shape.to_vec(), storage: Arc::new(storage) }
    }

    /// A one-element tensor of shape `[1]`.
    pub fn scalar<R: Real>(x: R) -> Tensor {
        Tensor { shape: vec![1], storage: Arc::new(R::store(vec![x])) }
    }

    fn with_storage(shape: &[usize], storage: Storage) -> Result<Tensor> {
        if shape.iter().product::<usize>() != storage.len() {
            return Err(Error::Internal(format!("{} elements do not fill shape {shape:?}", storage.len())));
        }
        Ok(Tensor { shape: shape.to_vec(), storage: Arc::new(storage) })
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.storage.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.storage.is_empty()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.storage.dtype()
    }

    /// Whether both are made of the same memory, such as clones are.
    pub fn shares_storage(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype().size()
    }

    /// Rows and width of a matrix: all dimensions but the last, and the last.
    pub fn matrix(&self) -> (usize, usize) {
        let width = self.shape.last().copied().unwrap_or(1);
        (self.shape[..self.shape.len().saturating_sub(1)].iter().product(), width)
    }

    /// Fails with the op's name unless the shape is `[_, width]`; gives the number of rows.
    pub fn rows_of(&self, op: &str, width: usize) -> Result<usize> {
        match self.shape[..] {
            [rows, w] if w == width => Ok(rows),
            _ => Err(Error::Internal(format!("{op}: expected shape [_, {width}], got {:?}", self.shape))),
        }
    }

    /// The elements in the type CPU arithmetic runs in: borrowed, or widened from bf16.
    ///
    /// Panics when a f64 tensor is asked for as f32 or the other way round, which `dispatch!` excludes, and for a tensor in
    /// device memory, which every op hands to its kernels before it gets here.
    pub fn real<R: Real>(&self) -> Cow<'_, [R]> {
        if let Some(x) = R::view(&self.storage) {
            return Cow::Borrowed(x);
        }
        match &*self.storage {
            Storage::Bf16(x) => Cow::Owned(x.iter().map(|x| R::of(f64::from(x.to_f32()))).collect()),
            Storage::CudaF32(_) | Storage::CudaBf16(_) => {
                panic!("a tensor in device memory was read by the host")
            }
            other => panic!("a {} tensor cannot be read without a conversion", other.dtype().name()),
        }
    }

    /// The elements widened or rounded to f32, for host code that does not compute further on the tape.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match &*self.storage {
            Storage::F64(x) => Cow::Owned(x.iter().map(|&x| x as f32).collect()),
            _ => self.real::<f32>(),
        }
    }

    /// The same elements in another type, in host memory.
    pub fn to_dtype(&self, dtype: DType) -> Tensor {
        if dtype == self.dtype() {
            return self.clone();
        }
        let wide: Vec<f64> = match &*self.storage {
            Storage::F64(x) => x.clone(),
            _ => self.real::<f32>().iter().map(|&x| f64::from(x)).collect(),
        };
        let storage = match dtype {
            DType::F32 => Storage::F32(wide.iter().map(|&x| x as f32).collect()),
            DType::F64 => Storage::F64(wide),
            DType::Bf16 => Storage::Bf16(wide.iter().map(|&x| bf16::from_f32(x as f32)).collect()),
        };
        Tensor { shape: self.shape.clone(), storage: Arc::new(storage) }
    }

    /// The same elements under another shape of the same size.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if shape.iter().product::<usize>() != self.len() {
            return Err(Error::Internal(format!("cannot view shape {:?} as {shape:?}", self.shape)));
        }
        Ok(Tensor { shape: shape.to_vec(), storage: self.storage.clone() })
    }

    /// The storage for writing; copied first when somebody else holds it too, or views its memory.
    fn storage_mut(&mut self) -> Result<&mut Storage> {
        if self.storage.is_view() || Arc::get_mut(&mut self.storage).is_none() {
            self.storage = Arc::new(self.storage.try_clone()?);
        }
        Arc::get_mut(&mut self.storage).ok_or_else(|| Error::Internal("a new copy has another owner".into()))
    }

    /// The elements for writing; copied first when somebody else holds them too.
    pub fn make_mut<R: Real>(&mut self) -> Result<&mut [R]> {
        let storage = self.storage_mut()?;
        let dtype = storage.dtype();
        R::view_mut(storage)
            .ok_or_else(|| Error::Internal(format!("a {} tensor cannot be written in place", dtype.name())))
    }

    /// Adds `other` element by element, in place where this is the sole owner.
    pub fn accumulate(&mut self, other: &Tensor) -> Result<()> {
        if self.shape != other.shape || self.dtype() != other.dtype() || self.gpu() != other.gpu() {
            return Err(Error::Internal(format!(
                "cannot add gradients of shapes {:?} and {:?}",
                self.shape, other.shape
            )));
        }
        if self.gpu().is_some() {
            return self.accumulate_on_gpu(other);
        }
        if self.dtype() == DType::Bf16 {
            let sum: Vec<f32> =
                self.real::<f32>().iter().zip(other.real::<f32>().iter()).map(|(a, b)| a + b).collect();
            *self = Tensor::rounded(&self.shape, sum, DType::Bf16)?;
            return Ok(());
        }
        crate::dispatch!(self.dtype(), R => {
            let add = other.real::<R>();
            self.make_mut::<R>()?.iter_mut().zip(add.iter()).for_each(|(a, &b)| *a += b);
        });
        Ok(())
    }
}
