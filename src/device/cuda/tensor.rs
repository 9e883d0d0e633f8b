//! Descriptions of tensors as the GPU's copies of boxes take them.

use super::Gpu;
use super::driver::checked;
use crate::Result;
use crate::ptx::TensorMap;
use crate::ptx::tensor::{Element, Swizzle, TENSOR_MAP_BYTES};
use cudarc::driver::sys;
use std::ffi::c_void;

impl Gpu {
    /// The bytes of a map, a kernel's parameter.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the driver refuses it, as it does where the GPU has no such copies.
    pub fn encode(&self, map: &TensorMap) -> Result<[u8; TENSOR_MAP_BYTES]> {
        use sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as ZEROS;
        use sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE as PLAIN;
        use sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B as LINES;
        // The driver would read as many numbers of each list as there are axes.
        map.check()?;
        self.enter()?;
        let mut made = sys::CUtensorMap { opaque: [0; TENSOR_MAP_BYTES / 8] };
        // SAFETY: the lists are as long as there are axes, strides one shorter, which was checked; the address is only written down.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut made,
                data_type(map.element),
                map.shape.len() as u32,
                map.address as *mut c_void,
                map.shape.as_ptr(),
                map.strides.as_ptr(),
                map.tile.as_ptr(),
                map.steps.as_ptr(),
                PLAIN,
                swizzle(map.swizzle),
                LINES,
                ZEROS,
            )
        };
        checked(result, "describing a tensor")?;
        Ok(bytemuck::cast(made.opaque))
    }
}

fn data_type(element: Element) -> sys::CUtensorMapDataType {
    use sys::CUtensorMapDataType::*;
    match element {
        Element::U8 => CU_TENSOR_MAP_DATA_TYPE_UINT8,
        Element::U16 => CU_TENSOR_MAP_DATA_TYPE_UINT16,
        Element::U32 => CU_TENSOR_MAP_DATA_TYPE_UINT32,
        Element::I32 => CU_TENSOR_MAP_DATA_TYPE_INT32,
        Element::U64 => CU_TENSOR_MAP_DATA_TYPE_UINT64,
        Element::I64 => CU_TENSOR_MAP_DATA_TYPE_INT64,
        Element::F16 => CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        Element::F32 => CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        Element::F64 => CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
        Element::Bf16 => CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    }
}

fn swizzle(swizzle: Swizzle) -> sys::CUtensorMapSwizzle {
    use sys::CUtensorMapSwizzle::*;
    match swizzle {
        Swizzle::None => CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => CU_TENSOR_MAP_SWIZZLE_128B,
    }
}
