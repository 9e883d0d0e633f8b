//! The same elements under another shape: a view, no launch.

use super::{expect_inputs, expect_real};
use crate::graph::{Cost, Graph, Launch, Node, Op, Signature, Target, Value};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// x of any shape → the given shape with as many elements, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Reshape(pub Vec<usize>);

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_real(self.name(), "x", inputs[0])?;
        let out = inputs[0].with_shape(self.0.clone());
        if out.elements() != inputs[0].elements() {
            return Err(Error::shape(self.name(), format!("{} has not as many elements as {:?}", inputs[0], self.0)));
        }
        Ok(vec![out])
    }

    fn cost(&self, _: &Signature) -> Cost {
        Cost::default()
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let shape = g.shape(node.inputs[0]).to_vec();
        Ok(vec![Some(g.apply(Reshape(shape), &[dy])?)])
    }

    fn view(&self, _: &Signature) -> Option<usize> {
        Some(0)
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn equals(&self, other: &dyn Op) -> bool {
        other.downcast::<Self>() == Some(self)
    }

    fn lower(&self, _: &Signature, _: &Target) -> Result<Vec<Launch>> {
        Ok(vec![])
    }
}
