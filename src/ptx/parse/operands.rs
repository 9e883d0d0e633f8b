//! Instructions and their operands.

use std::cmp::Ordering;

use super::super::instr::{self, Opcode};
use super::super::lex::Token;
use super::super::module::*;
use super::{Parsed, Parser};

impl<'a> Parser<'a> {
    pub(super) fn instruction(&mut self, line: u32, guard: Option<(u32, bool)>) -> Parsed<()> {
        let opcode = self.word("an opcode")?;
        match (opcode, self.body.exit) {
            ("ret" | "ret.uni", Some(exit)) => {
                self.expect(';')?;
                return self.branch(line, opcode, guard, exit);
            }
            ("call" | "call.uni", _) => return self.call(line, guard),
            _ => {}
        }
        let branches = opcode == "bra" || opcode.starts_with("bra.");
        let mut operands = Vec::new();
        while !self.accept(';') {
            operands.push(if branches { self.label()? } else { self.operand()? });
            if !self.accept(',') {
                self.expect(';')?;
                break;
            }
        }
        let decoded = instr::decode(&Opcode::new(opcode), operands).map_err(|reason| ParseError { line, reason })?;
        let instr::Decoded { class, action } = decoded;
        self.body.code.push(Instruction { line, guard, opcode: opcode.to_owned(), class, action });
        Ok(())
    }

    fn label(&mut self) -> Parsed<Operand> {
        let line = self.line();
        let name = self.word("a label")?.to_owned();
        let index = self.body.labels.len();
        self.body.labels.push(0);
        if let Some(scope) = self.body.scopes.last_mut() {
            scope.wanted.push((name, index, line));
        }
        Ok(Operand::Label(index))
    }

    fn operand(&mut self) -> Parsed<Operand> {
        if self.accept('{') {
            return self.list().map(Operand::Vector);
        }
        if !self.accept('[') {
            let first = self.scalar()?;
            return Ok(if self.accept('|') { Operand::Pair(Box::new([first, self.scalar()?])) } else { first });
        }
        let mut base = self.scalar()?;
        let mut offset = 0;
        if let Operand::Variable(_, inside) = &mut base {
            offset = std::mem::take(inside);
        } else if self.accept('+') {
            offset = self.signed()?;
        } else if self.accept('-') {
            offset = self.signed()?.wrapping_neg();
        }
        let coordinates = if self.accept(',') {
            self.expect('{')?;
            self.list()?
        } else {
            Vec::new()
        };
        self.expect(']')?;
        Ok(Operand::Memory { base: Box::new(base), offset, coordinates })
    }

    /// The rest of `{a, b}`.
    fn list(&mut self) -> Parsed<Vec<Operand>> {
        let mut out = Vec::new();
        while !self.accept('}') {
            out.push(self.scalar()?);
            if !self.accept(',') {
                self.expect('}')?;
                break;
            }
        }
        Ok(out)
    }

    fn signed(&mut self) -> Parsed<i64> {
        let negative = self.accept('-');
        let value = self.integer("an offset")? as i64;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    fn scalar(&mut self) -> Parsed<Operand> {
        let negative = self.accept('-');
        let inverted = !negative && self.accept('!');
        let operand = match self.next()? {
            Token::Integer(n) => Operand::Integer(if negative { n.wrapping_neg() } else { n }),
            Token::F32(bits) => Operand::F32(if negative { bits ^ 1 << 31 } else { bits }),
            Token::F64(x) => Operand::F64(if negative { -x } else { x }),
            Token::Word(name) if !negative => self.named(name, inverted)?,
            _ => {
                self.at -= 1;
                return Err(self.unexpected("an operand"));
            }
        };
        if inverted && !matches!(operand, Operand::Not(_)) {
            return Err(self.error("`!` may only stand before a predicate"));
        }
        Ok(operand)
    }

    fn named(&mut self, name: &str, inverted: bool) -> Parsed<Operand> {
        if let Some(slot) = self.register(name) {
            return Ok(match slot {
                Operand::Predicate(slot) if inverted => Operand::Not(slot),
                slot => slot,
            });
        }
        if let Some(index) = self.variable(name) {
            let offset = if self.accept('+') {
                self.signed()?
            } else if self.accept('-') {
                self.signed()?.wrapping_neg()
            } else {
                0
            };
            return Ok(Operand::Variable(index, offset));
        }
        match name {
            "_" => Ok(Operand::Sink),
            "WARP_SZ" => Ok(Operand::Integer(32)),
            _ => special(name).map(Operand::Special).ok_or_else(|| {
                self.at -= 1;
                self.error(format!("`{name}` is not declared"))
            }),
        }
    }
}

fn special(name: &str) -> Option<Special> {
    let (base, axis) = match name.rsplit_once('.') {
        Some((base, axis)) => (base, ["x", "y", "z"].iter().position(|a| *a == axis)?),
        None => (name, usize::MAX),
    };
    if axis != usize::MAX {
        return Some(match base {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" => Special::Ctaid(axis),
            "%nctaid" => Special::Nctaid(axis),
            "%clusterid" => Special::Clusterid(axis),
            "%nclusterid" => Special::Nclusterid(axis),
            "%cluster_ctaid" => Special::ClusterCtaid(axis),
            "%cluster_nctaid" => Special::ClusterNctaid(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NwarpId,
        "%lanemask_eq" => Special::LaneMask(Ordering::Equal, false),
        "%lanemask_lt" => Special::LaneMask(Ordering::Less, false),
        "%lanemask_le" => Special::LaneMask(Ordering::Less, true),
        "%lanemask_gt" => Special::LaneMask(Ordering::Greater, false),
        "%lanemask_ge" => Special::LaneMask(Ordering::Greater, true),
        "%clock" | "%clock64" | "%clock_hi" | "%globaltimer" => Special::Clock,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%cluster_ctarank" => Special::ClusterRank,
        "%cluster_nctarank" => Special::ClusterBlocks,
        "%smid" | "%gridid" => Special::Zero,
        "%nsmid" => Special::One,
        _ => return None,
    })
}
