//! Branches, ends, and what has no effect here.

use super::super::check::{FaultKind, Trap};
use super::super::count::Class;
use super::super::machine::Context;
use super::super::module::Operand;
use super::{Decode, Execute, Flow, Opcode, decoded};

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    match op.name {
        "bra" => {
            op.flag("uni");
            let [Operand::Label(label)] = op.operands(operands)? else { return Err(op.unknown()) };
            decoded(Class::Control, Branch(label))
        }
        "nanosleep" => {
            op.ty()?;
            op.operands::<1>(operands)?;
            decoded(Class::Control, Sleep)
        }
        // Registers are without end here, and no other grid runs.
        "setmaxnreg" => {
            op.one_of(&["inc", "dec"]).ok_or_else(|| op.unknown())?;
            op.flag("sync");
            op.flag("aligned");
            op.ty()?;
            op.operands::<1>(operands)?;
            decoded(Class::Control, Nothing)
        }
        "griddepcontrol" => {
            op.one_of(&["launch_dependents", "wait"]).ok_or_else(|| op.unknown())?;
            op.operands::<0>(operands)?;
            decoded(Class::Control, Nothing)
        }
        "trap" => {
            op.operands::<0>(operands)?;
            decoded(Class::Control, Stop)
        }
        _ => {
            op.flag("uni");
            op.operands::<0>(operands)?;
            decoded(Class::Control, End)
        }
    }
}

struct Branch(usize);

impl Execute for Branch {
    fn run(&self, _: &mut Context<'_>) -> Result<Flow, Trap> {
        Ok(Flow::Jump(self.0))
    }

    fn target(&self) -> Option<usize> {
        Some(self.0)
    }
}

struct End;

impl Execute for End {
    fn run(&self, _: &mut Context<'_>) -> Result<Flow, Trap> {
        Ok(Flow::End)
    }

    fn ends(&self) -> bool {
        true
    }
}

struct Sleep;

impl Execute for Sleep {
    fn run(&self, _: &mut Context<'_>) -> Result<Flow, Trap> {
        Ok(Flow::Yield)
    }
}

struct Stop;

impl Execute for Stop {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        Err(cx.fault(FaultKind::Trap))
    }
}

/// An instruction that has no effect in this machine.
pub(super) struct Nothing;

impl Execute for Nothing {
    fn run(&self, _: &mut Context<'_>) -> Result<Flow, Trap> {
        Ok(Flow::Next)
    }
}
