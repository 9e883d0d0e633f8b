// logits [tokens, count], the chosen experts and the gradient of their weights [tokens, chosen] -> dlogits.
// Floor: logits read once, dlogits written once. A token has as many lanes as it has experts, 32 at most.
#include "lib/route.cuh"

FLAT_KERNEL route_grad_f32(const f32* logits, const i32* experts, const f32* dweights, f32* dlogits, u32 tokens, u32 count,
                           u32 chosen, u32 lanes, u32 normalize) {
    Token token(logits, tokens, count, lanes);
    Softmax softmax = token.softmax();
    experts += u64(token.number) * chosen;
    dweights += u64(token.number) * chosen;
    // Sums over the chosen: of scores, and of scores times gradients.
    float total = 0.0f, product = 0.0f;
    for (u32 j = token.lane; j < chosen; j += lanes) {
        u32 e = u32(experts[j]);
        float score = e < count ? softmax.score(token.x[e]) : 0.0f;
        total += score;
        product += score * dweights[j];
    }
    total = token.sum(total);
    product = token.sum(product);
    float divisor = normalize ? total + TINY : 1.0f;
    // What every chosen weight loses where another one's score grows; the sum of scores times their gradients.
    float lost = normalize ? product / divisor : 0.0f;
    float dot = (product - lost * total) / divisor;
    if (!token.real) return;
    for (u32 e = token.lane; e < count; e += lanes) {
        float score = softmax.score(token.x[e]), d = -score * dot;
        for (u32 j = 0; j < chosen; j++)
            if (u32(experts[j]) == e) d += score * ((dweights[j] - lost) / divisor);
        dlogits[u64(token.number) * count + e] = d;
    }
}
