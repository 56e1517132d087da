// The backward sweep over the steps that a solve has left, around functions that are made from the transposed step of the method:
// pull_plain, and pull_dense where outputs lie inside a step.
#pragma once

struct Backward {
  const Pull& job;
  const Uniform& c;
  Tape& tape;
  Gradients& gradients;
  PN_ALIGNED Lanes lanes;
  PN_ALIGNED S owed[DIM], lost[DIM], to_args[ARGS + 1];
  Cursor cursor[LANES];
  bool sound[LANES];
  std::vector<int64_t> before;  // the assignment before each one on the same lane, -1 for none

  Backward(const Pull& job, const Uniform& c, Tape& tape, Gradients& gradients)
      : job(job), c(c), tape(tape), gradients(gradients) {}

  void run() {
    std::memset((void*)&lanes, 0, sizeof lanes);
    int64_t held[LANES], entry = (int64_t)tape.assignments.size();
    for (int l = 0; l < LANES; ++l) held[l] = -1, sound[l] = false;
    for (int64_t k = 0; k < entry; ++k) {
      before.push_back(held[tape.assignments[k].lane]);
      held[tape.assignments[k].lane] = k;
    }
    for (int l = 0; l < LANES; ++l) open(l, held[l]);
    for (int64_t n = tape.count; n-- > 0;) {
      for (; entry > 0 && tape.assignments[entry - 1].record > n; --entry) close(entry - 1);
      pull_record(tape.at(n));
    }
    for (; entry > 0; --entry) close(entry - 1);
    gradients.flush();
  }

  void open(int lane, int64_t assignment) {
    sound[lane] = false;
    if (assignment < 0) return;
    const int64_t row = tape.assignments[assignment].row;
    lanes.row[lane] = row;
    sound[lane] = job.status[row] == OK;
    lanes.t0[lane] = job.t0[row];
    lanes.direction[lane] = job.direction[row];
    for (int i = 0; i < ARGS; ++i) lanes.args[i][lane] = job.args[row * ARGS + i], to_args[i][lane] = 0;
    for (int d = 0; d < DIM; ++d) owed[d][lane] = lost[d][lane] = 0;
    const Cursor ahead(job.ts + row * job.ts_stride, job.times, job.direction[row]);
    cursor[lane] = ahead;
    cursor[lane].at = ahead.end - ahead.by;
    cursor[lane].end = ahead.at - ahead.by;
    cursor[lane].by = -ahead.by;
  }

  void close(int64_t assignment) {
    const int lane = tape.assignments[assignment].lane;
    const int64_t row = tape.assignments[assignment].row;
    for (int d = 0; d < DIM; ++d) job.to_y0[row * DIM + d] = sound[lane] ? owed[d][lane] : 0;
    for (int i = 0; i < ARGS; ++i) job.to_args[row * ARGS + i] = sound[lane] ? to_args[i][lane] : 0;
    open(lane, before[assignment]);
  }

  void pull_record(const Record& record) {
    int64_t mask = 0;
    for (int l = 0; l < LANES; ++l) mask |= (int64_t)((record.mask >> l & 1) && sound[l]) << l;
    if (!mask) return;
    // trajectories without a step here rest in the place of one that has one, and are owed nothing
    const int well = __builtin_ctzll(mask);
    M active;
    for (int l = 0; l < LANES; ++l) active[l] = -(mask >> l & 1);
    const D t = sel(active, record.t, bD(record.t[well])), t_end = sel(active, record.t_end, bD(record.t_end[well]));
    PN_ALIGNED S y[DIM], arriving[DIM], change[DIM], inner_change[DIM], stages[WEIGHTS * DIM + 1], safe_args[ARGS + 1], args_back[ARGS + 1];
    for (int d = 0; d < DIM; ++d) y[d] = sel(active, record.y[d], S{} + record.y[d][well]), change[d] = S{};
    for (int i = 0; i < ARGS; ++i) safe_args[i] = sel(active, lanes.args[i], S{} + lanes.args[i][well]), args_back[i] = S{};
    bool dense = false;
    for (;;) {
      PN_ALIGNED D theta = D{};
      PN_ALIGNED S ends[DIM], inner[DIM];
      bool any = false, any_inner = false, any_end = false;
      for (int d = 0; d < DIM; ++d) ends[d] = inner[d] = S{};
      for (int l = 0; l < LANES; ++l) {
        if (!(mask >> l & 1) || cursor[l].done()) continue;
        const double time = cursor[l].time(), sign = lanes.direction[l], end = t_end[l];
        if (!(sign * time - EPS4 * std::fabs(time) > sign * t[l])) continue;
        any = true;
        const double scale = std::fabs(time) > std::fabs(end) ? std::fabs(time) : std::fabs(end);
        const bool at_end = std::fabs(time - end) <= EPS4 * scale;
        const Scalar* g = job.cotangents + (lanes.row[l] * job.times + cursor[l].at) * DIM;
        for (int d = 0; d < DIM; ++d) (at_end ? ends : inner)[d][l] = g[d];
        if (!at_end) theta[l] = (time - t[l]) / (end == t[l] ? 1.0 : end - t[l]);
        any_inner |= !at_end;
        any_end |= at_end;
        cursor[l].at += cursor[l].by;
      }
      if (!any) break;
      if (any_end) add(ends, active);
      if (!any_inner) continue;
      if (READ_BY_STEPS) {
        pull_plain(c, gradients, lanes, safe_args, t, t + theta * (t_end - t), y, inner, inner_change, args_back);
        for (int d = 0; d < DIM; ++d) change[d] += inner[d] + inner_change[d];
        continue;
      }
      if (!dense)
        for (int i = 0; i < WEIGHTS * DIM; ++i) stages[i] = S{};
      dense = true;
      PN_ALIGNED S weight[WEIGHTS + 1];
      weights(c, theta, weight);
      const S h = to_state(t_end - t);
      for (int d = 0; d < DIM; ++d) {
        change[d] += inner[d];
        const S scaled = h * inner[d];
        for (int i = 0; i < WEIGHTS; ++i) stages[i * DIM + d] += weight[i] * scaled;
      }
    }
    for (int d = 0; d < DIM; ++d) arriving[d] = sel(active, owed[d], S{});
    if (dense)
      pull_dense(c, gradients, lanes, safe_args, t, t_end, y, arriving, stages, inner_change, args_back);
    else
      pull_plain(c, gradients, lanes, safe_args, t, t_end, y, arriving, inner_change, args_back);
    for (int d = 0; d < DIM; ++d) change[d] += inner_change[d];
    add(change, active);
    for (int i = 0; i < ARGS; ++i) to_args[i] += sel(active, args_back[i], S{});
    gradients.count();
  }

  void add(const S* change, M active) {  // what rounding cuts off waits for the next change (Kahan)
    for (int d = 0; d < DIM; ++d) {
      const S due = change[d] + lost[d], end = owed[d] + due;
      lost[d] = sel(active, due - (end - owed[d]), lost[d]);
      owed[d] = sel(active, end, owed[d]);
    }
  }
};
