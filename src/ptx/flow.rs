//! Where lanes that part at a branch meet again: at the branch's immediate post-dominator.

use super::module::Instruction;

/// For each instruction its immediate post-dominator; the length of the code where there is none, or where it is the end.
///
/// Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm", on the reversed graph. A guarded `ret` counts as its
/// successor alone: the lanes that leave have nothing to meet for.
pub(super) fn post_dominators(code: &[Instruction], labels: &[usize]) -> Vec<usize> {
    let end = code.len();
    let successors: Vec<Vec<usize>> = code.iter().enumerate().map(|(at, i)| successors(at, i, labels, end)).collect();
    let mut predecessors = vec![Vec::new(); end + 1];
    for (at, list) in successors.iter().enumerate() {
        list.iter().for_each(|s| predecessors[*s].push(at));
    }
    // Postorder of the reversed graph from the end; what no path leads from there (endless loops) keeps no number.
    let mut number = vec![None; end + 1];
    let mut order = Vec::new();
    let mut stack = vec![(end, 0)];
    let mut seen = vec![false; end + 1];
    seen[end] = true;
    while let Some((at, next)) = stack.pop() {
        if let Some(&p) = predecessors[at].get(next) {
            stack.push((at, next + 1));
            if !seen[p] {
                seen[p] = true;
                stack.push((p, 0));
            }
        } else {
            number[at] = Some(order.len());
            order.push(at);
        }
    }
    let mut dominator = vec![None; end + 1];
    dominator[end] = Some(end);
    let mut changed = true;
    while changed {
        changed = false;
        for &at in order.iter().rev().filter(|at| **at != end) {
            let known = successors[at].iter().copied().filter(|s| dominator[*s].is_some());
            let new = known.reduce(|a, b| meet(a, b, &dominator, &number));
            if new.is_some() && new != dominator[at] {
                dominator[at] = new;
                changed = true;
            }
        }
    }
    dominator.truncate(end);
    dominator.into_iter().map(|d| d.unwrap_or(end)).collect()
}

fn meet(mut a: usize, mut b: usize, dominator: &[Option<usize>], number: &[Option<usize>]) -> usize {
    while a != b {
        let lower = if number[a] < number[b] { &mut a } else { &mut b };
        match dominator[*lower] {
            Some(up) => *lower = up,
            None => return dominator.len() - 1,
        }
    }
    a
}

fn successors(at: usize, instruction: &Instruction, labels: &[usize], end: usize) -> Vec<usize> {
    let guarded = instruction.guard.is_some();
    match instruction.action.target() {
        Some(label) if guarded => vec![labels[label], at + 1],
        Some(label) => vec![labels[label]],
        None if instruction.action.ends() && !guarded => vec![end],
        None => vec![at + 1],
    }
}
