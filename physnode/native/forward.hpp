// The loop of a solve, around functions that are made from the method, the controller and the field: start, trial, extend,
// weights and restep. LANES trajectories run side by side, each with its own time and step; one that ends is replaced by the next.
#pragma once


// The output times of one trajectory in the order in which it comes to them.
struct Cursor {
  const double* ts;
  int64_t at, end, by;
  Cursor() : ts(nullptr), at(0), end(0), by(1) {}
  Cursor(const double* times, int64_t count, double direction) : ts(times) {
    const bool ahead = direction * (times[count - 1] - times[0]) >= 0;
    at = ahead ? 0 : count - 1;
    end = ahead ? count : -1;
    by = ahead ? 1 : -1;
  }
  bool done() const { return at == end; }
  double time() const { return ts[at]; }
};

struct Forward {
  const Solve& job;
  const Uniform& c;
  Tape* tape;
  int64_t next, last;
  PN_ALIGNED Lanes lanes;
  PN_ALIGNED State other;
  PN_ALIGNED Lanes pool;
  PN_ALIGNED Record spare;
  PN_ALIGNED Step step;
  M pool_status;
  int pool_at = 0, pool_count = 0;
  Cursor cursor[LANES];
  double due[LANES];  // time of the next output, along the direction and less what counts as reached; infinite if there is none
  bool busy[LANES];

  Forward(const Solve& job, const Uniform& c, Tape* tape, int64_t first, int64_t last)
      : job(job), c(c), tape(tape), next(first), last(last) {}

  void run() {
    std::memset((void*)&lanes, 0, sizeof lanes);
    std::memset((void*)&other, 0, sizeof other);
    std::memset((void*)&spare, 0, sizeof spare);
    int running = 0;
    for (int l = 0; l < LANES; ++l) running += busy[l] = assign(l);
    State *now = &lanes.state, *then = &other;
    while (running) {
      Record& record = tape ? tape->next() : spare;
      record.t = now->d[AT_T];
      std::memcpy((void*)record.y, now->s + AT_Y, sizeof record.y);
      trial(c, lanes, *now, *then, step);
      record.t_end = step.t_end;
      int64_t mask = 0;
      for (int l = 0; l < LANES; ++l) mask |= (int64_t)(busy[l] && step.accept[l]) << l;
      record.mask = mask;
      read(record, *now, *then, mask);
      if (tape && mask) ++tape->count;
      for (int l = 0; l < LANES; ++l)
        if (busy[l] && step.status[l] != RUNNING) {
          finish(l, *then, step.status[l]);
          busy[l] = assign(l, then);
          running -= !busy[l];
        }
      State* swap = now;
      now = then;
      then = swap;
    }
  }

  Cursor times_of(int64_t row) { return Cursor(job.ts + row * job.ts_stride, job.times, job.direction[row]); }

  // Start the next trajectories side by side, and put one that has a way to go into the lane.
  bool assign(int lane, State* target = nullptr) {
    for (;;) {
      if (pool_at == pool_count) {
        if (next == last) return false;
        fill_pool();
      }
      const int from = pool_at++;
      const int64_t row = pool.row[from];
      Cursor times = times_of(row);
      while (!times.done() && times.time() == job.t0[row]) {
        std::memcpy(job.ys + (row * job.times + times.at) * DIM, job.y0 + row * DIM, DIM * sizeof(Scalar));
        times.at += times.by;
      }
      cursor[lane] = times;
      lanes.row[lane] = row;
      lanes.t0[lane] = pool.t0[from];
      lanes.t1[lane] = pool.t1[from];
      lanes.direction[lane] = pool.direction[from];
      copy_lane(lanes.args, lane, pool.args, from, ARGS);
      State& to = target ? *target : lanes.state;
      copy_state(to, lane, pool.state, from);
      if (pool_status[from] != RUNNING) {
        finish(lane, to, pool_status[from]);
        continue;
      }
      set_due(lane);
      if (tape) tape->assignments.push_back({tape->count, row, lane});
      return true;
    }
  }

  void fill_pool() {
    pool_at = 0;
    pool_count = last - next < LANES ? (int)(last - next) : LANES;
    PN_ALIGNED S y0[DIM], derivative[DIM];
    for (int l = 0; l < LANES; ++l) {
      const int64_t row = next + (l < pool_count ? l : 0);
      pool.row[l] = row;
      pool.t0[l] = job.t0[row];
      pool.t1[l] = job.t1[row];
      pool.direction[l] = job.direction[row];
      for (int i = 0; i < DIM; ++i) y0[i][l] = job.y0[row * DIM + i];
      for (int i = 0; i < ARGS; ++i) pool.args[i][l] = job.args[row * ARGS + i];
    }
    start(c, pool, y0, pool.state, derivative, pool_status);
    for (int l = 0; l < pool_count; ++l)
      for (int i = 0; i < DIM; ++i) job.derivative[(next + l) * DIM + i] = derivative[i][l];
    next += pool_count;
  }

  void set_due(int lane) {
    const Cursor& times = cursor[lane];
    due[lane] = times.done() ? INFINITY : lanes.direction[lane] * times.time() - EPS4 * std::fabs(times.time());
  }

  // Outputs that the accepted steps have come to.
  void read(const Record& record, const State& before, State& after, int64_t mask) {
    bool extended = false;
    int64_t inside = 0;
    for (;;) {
      PN_ALIGNED D theta = D{};
      int64_t inner = 0, any = 0;
      for (int l = 0; l < LANES; ++l) {
        if (!(mask >> l & 1) || !(due[l] <= lanes.direction[l] * record.t_end[l])) continue;
        const double time = cursor[l].time(), end = record.t_end[l], t = record.t[l];
        const double scale = std::fabs(time) > std::fabs(end) ? std::fabs(time) : std::fabs(end);
        any |= (int64_t)1 << l;
        if (std::fabs(time - end) <= EPS4 * scale) {
          write(l, step.y);
        } else {
          inner |= (int64_t)1 << l;
          theta[l] = (time - t) / (end == t ? 1.0 : end - t);
        }
      }
      if (!any) break;
      if (inner) {
        PN_ALIGNED S values[DIM];
        if (READ_BY_STEPS) {
          restep(c, lanes, record.t, record.t + theta * (record.t_end - record.t), record.y, before, values);
        } else {
          if (!extended) extend(c, lanes, record, step);
          extended = true;
          PN_ALIGNED S weight[WEIGHTS + 1];
          weights(c, theta, weight);
          const S h = to_state(record.t_end - record.t);
          for (int d = 0; d < DIM; ++d) {
            S total = S{};
            for (int i = 0; i < WEIGHTS; ++i) total += weight[i] * step.stages[i * DIM + d];
            values[d] = record.y[d] + h * total;
          }
        }
        for (int l = 0; l < LANES; ++l)
          if (inner >> l & 1) {
            write(l, values);
            if (READ_BY_STEPS) after.m[AT_EVALUATIONS][l] += STEP_EVALUATIONS;
          }
        inside |= inner;
      }
      for (int l = 0; l < LANES; ++l)
        if (any >> l & 1) {
          cursor[l].at += cursor[l].by;
          set_due(l);
        }
    }
    if (!READ_BY_STEPS && EXTRA_EVALUATIONS)
      for (int l = 0; l < LANES; ++l)
        if (inside >> l & 1) after.m[AT_EVALUATIONS][l] += EXTRA_EVALUATIONS;
  }

  void write(int lane, const S* values) {
    Scalar* out = job.ys + (lanes.row[lane] * job.times + cursor[lane].at) * DIM;
    for (int d = 0; d < DIM; ++d) out[d] = values[d][lane];
  }

  void finish(int lane, const State& state, int64_t status) {
    const int64_t row = lanes.row[lane];
    Cursor times = cursor[lane];
    for (; !times.done(); times.at += times.by)
      for (int d = 0; d < DIM; ++d) job.ys[(row * job.times + times.at) * DIM + d] = NAN;
    job.status[row] = status;
    job.accepted[row] = state.m[AT_ACCEPTED][lane];
    job.rejected[row] = state.m[AT_REJECTED][lane];
    job.evaluations[row] = state.m[AT_EVALUATIONS][lane];
    job.reached[row] = state.d[AT_T][lane];
    job.tried[row] = state.d[AT_TRIED][lane];
    for (int d = 0; d < DIM; ++d) job.last[row * DIM + d] = state.s[AT_Y + d][lane];
  }
};
