//! Modules: PTX that the driver has made into machine code.

use super::driver::{checked, text};
use crate::device::ptx::{self, parameter_bytes};
use crate::graph::Ptx;
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUjit_option, CUresult};
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::ffi::{CString, c_void};

/// Bytes of the log that the driver's compiler writes.
const LOG: usize = 8192;

/// An entry, and the bytes of each of its parameters.
#[derive(Clone, Debug)]
pub struct Function {
    pub(super) handle: sys::CUfunction,
    pub(super) parameters: Vec<usize>,
    /// Most dynamic shared memory of a block.
    most_shared: u32,
}

// SAFETY: a handle that may be used from any thread.
unsafe impl Send for Function {}

#[derive(Default)]
pub(super) struct Modules {
    /// By folder and file: the module and its text.
    loaded: HashMap<(&'static str, &'static str), (sys::CUmodule, String)>,
    functions: HashMap<(&'static str, &'static str, String), Function>,
}

impl Modules {
    /// The entry of a kernel in the current context.
    pub(super) fn function(&mut self, kernel: &Ptx, most_shared: u32) -> Result<Function> {
        let (folder, file) = (kernel.file.folder, kernel.file.name);
        let function = match self.functions.get(&(folder, file, kernel.entry.clone())) {
            Some(function) => function.clone(),
            None => {
                let function = self.load(kernel, most_shared)?;
                self.functions.insert((folder, file, kernel.entry.clone()), function.clone());
                function
            }
        };
        if kernel.shared_bytes > function.most_shared {
            let what = format!("the shared memory of a block of {}", kernel.entry);
            return Err(Error::TooLarge {
                what,
                bytes: kernel.shared_bytes.into(),
                limit: function.most_shared.into(),
            });
        }
        Ok(function)
    }

    fn load(&mut self, kernel: &Ptx, most_shared: u32) -> Result<Function> {
        let lacks = || rejected(kernel, format!("its file has no entry `{}`", kernel.entry));
        let (module, text) = match self.loaded.entry((kernel.file.folder, kernel.file.name)) {
            Slot::Occupied(loaded) => loaded.into_mut(),
            Slot::Vacant(place) => {
                let text = ptx::text(&kernel.file)?.into_owned();
                place.insert((compile(kernel, &text)?, text))
            }
        };
        let parameters = parameter_bytes(text, &kernel.entry).ok_or_else(lacks)?;
        let name = CString::new(kernel.entry.as_str()).map_err(|e| rejected(kernel, e.to_string()))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with a zero.
        let result = unsafe { sys::cuModuleGetFunction(&mut handle, *module, name.as_ptr()) };
        if result == CUresult::CUDA_ERROR_NOT_FOUND {
            return Err(lacks());
        }
        checked(result, "looking for a kernel's entry")?;
        Ok(Function { handle, parameters, most_shared: allow_shared(handle, most_shared)? })
    }

    /// Unloads all; the context is current, nothing runs.
    pub(super) fn unload(&mut self) {
        self.functions.clear();
        for (_, (module, _)) in self.loaded.drain() {
            // SAFETY: loaded by `cuModuleLoadDataEx` in this context.
            unsafe { sys::cuModuleUnload(module) };
        }
    }
}

/// Allows a kernel all of a block's shared memory, of which it may have 48 KiB without asking: its own and what launches give it, which
/// is returned. Set once, as the last value that is set holds for launches that were made ready before, too.
fn allow_shared(function: sys::CUfunction, most_shared: u32) -> Result<u32> {
    use sys::CUfunction_attribute::{
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
    };
    let mut own = 0;
    // SAFETY: an out parameter; the function is loaded.
    unsafe {
        checked(sys::cuFuncGetAttribute(&mut own, STATIC, function), "asking for a kernel's shared memory")?;
        let dynamic = most_shared.saturating_sub(own.max(0) as u32);
        checked(sys::cuFuncSetAttribute(function, DYNAMIC, dynamic as i32), "raising a kernel's shared memory")?;
        Ok(dynamic)
    }
}

/// Has the driver make machine code of PTX; its log is the error's.
fn compile(kernel: &Ptx, ptx: &str) -> Result<sys::CUmodule> {
    let image = CString::new(ptx).map_err(|e| rejected(kernel, e.to_string()))?;
    let (mut module, mut log) = (std::ptr::null_mut(), vec![0; LOG]);
    let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr() as *mut c_void, LOG as *mut c_void];
    // SAFETY: the image ends with a zero; the log is a buffer of the length that is told, the last byte of which stays zero.
    let result = unsafe {
        sys::cuModuleLoadDataEx(&mut module, image.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    if result == CUresult::CUDA_SUCCESS {
        return Ok(module);
    }
    log[LOG - 1] = 0;
    Err(rejected(kernel, format!("{result:?}: {}", text(log.as_ptr()).trim())))
}

pub(super) fn rejected(kernel: &Ptx, reason: String) -> Error {
    Error::Kernel { device: "cuda", kernel: kernel.name, reason }
}
