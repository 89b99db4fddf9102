// Warp collectives.
#include "cuemu/warp.h"

#include "runtime.h"

namespace cuemu {

static void complete(Block* b, Warp* warp, Rendezvous* r, const Fiber* self) {
    if (r->kind->run) r->kind->run(warp, r);
    if (r->kind->orders) check_warp_order(warp, r->arrived);
    const uint32_t lanes = r->arrived;
    r->mask = r->arrived = 0;
    Fiber* first = &b->fibers[warp->index * 32];
    if (b->launch->schedule == Schedule::Fifo) {
        // To the front: the warp goes on while its stacks are in the cache.
        for (int l = 31; l >= 0; l--) {
            if (!(lanes >> l & 1) || &first[l] == self) continue;
            first[l].state = State::Ready;
            push_front(b, first[l].index);
        }
    } else {
        for (int l = 0; l < 32; l++) {
            if ((lanes >> l & 1) && &first[l] != self) make_ready(&first[l]);
        }
    }
}

void warp_rendezvous(uint32_t mask, const Collective* kind, void* arg, const char* file, int line) {
    Fiber* me = cur;
    Warp* warp = me->warp;
    Block* b = me->block;
    const uint32_t bit = 1u << me->lane;
    if (!(mask & bit)) {
        report(LAUNCH_FAILED, "%s at %s:%d: mask %08x doesn't name the calling lane %u", kind->name, base_name(file),
               line, mask, me->lane);
        die();
    }
    Rendezvous *mine = nullptr, *free = nullptr;
    for (Rendezvous& r : warp->pending) {
        if (r.mask == mask && !(r.arrived & bit)) {
            mine = &r;
            break;
        }
        if (!r.mask && !free) free = &r;
    }
    if (!mine && !free) {
        report(LAUNCH_FAILED, "%s at %s:%d: the warp waits in too many collectives at once", kind->name,
               base_name(file), line);
        die();
    }
    if (!mine) {
        mine = free;
        mine->mask = mask;
        mine->kind = kind;
        mine->file = file;
        mine->line = line;
    } else if (mine->kind != kind || mine->line != line) {
        report(LAUNCH_FAILED, "divergent warp collective: lane %u is in %s at %s:%d, other lanes of mask %08x wait in %s "
               "at %s:%d", me->lane, kind->name, base_name(file), line, mask, mine->kind->name, base_name(mine->file),
               mine->line);
        die();
    }
    mine->args[me->lane] = arg;
    mine->arrived |= bit;
    // Lanes that have returned don't count.
    if (mine->arrived != (mask & warp->alive)) {
        wait_ready(kind->name, file, line);
        return;
    }
    complete(b, warp, mine, me);
    if (b->launch->schedule != Schedule::Fifo) {
        push_back(b, me->index);
        switch_away();
    }
}

void release_warp_after_exit(Fiber* fiber) {
    Warp* warp = fiber->warp;
    for (Rendezvous& r : warp->pending) {
        if (r.mask && r.arrived && r.arrived == (r.mask & warp->alive)) complete(fiber->block, warp, &r, nullptr);
    }
}

static void run_shuffle(Warp*, Rendezvous* r) {
    for (int l = 0; l < 32; l++) {
        if (!(r->arrived >> l & 1)) continue;
        auto* arg = static_cast<ShuffleArg*>(r->args[l]);
        // What an absent lane would give is undefined.
        const bool there = r->arrived >> arg->source & 1;
        arg->result = there ? static_cast<ShuffleArg*>(r->args[arg->source])->value : ~0ull;
    }
}

struct BallotArg {
    bool predicate;
    uint32_t result;
};

static void run_ballot(Warp*, Rendezvous* r) {
    uint32_t votes = 0;
    for (int l = 0; l < 32; l++) {
        if ((r->arrived >> l & 1) && static_cast<BallotArg*>(r->args[l])->predicate) votes |= 1u << l;
    }
    for (int l = 0; l < 32; l++) {
        if (r->arrived >> l & 1) static_cast<BallotArg*>(r->args[l])->result = votes;
    }
}

const Collective SYNCWARP{nullptr, true, "__syncwarp"};
const Collective SHUFFLE{run_shuffle, false, "a shuffle"};
static const Collective BALLOT{run_ballot, false, "a vote"};

uint32_t warp_ballot(uint32_t mask, bool predicate, const char* file, int line) {
    BallotArg arg{predicate, 0};
    warp_rendezvous(mask, &BALLOT, &arg, file, line);
    return arg.result;
}

}  // namespace cuemu
