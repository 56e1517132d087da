// The loops of a solve and of its backward sweep, around functions that are made from the method, the controller and the field:
// start, trial, extend, weights, restep and pull. LANES trajectories run side by side, each with its own time and step; one
// that ends is replaced by the next.
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

template <class Work>
static void in_parallel(int64_t workers, Work work) {
  std::vector<std::thread> others;
  for (int64_t w = 1; w < workers; ++w) others.emplace_back(work, w);
  work(0);
  for (std::thread& other : others) other.join();
}

extern "C" {
void* pn_solve(const Solve* job) {
  const int64_t workers = job->threads;
  Tapes* tapes = new Tapes;
  tapes->of.resize(job->keep ? workers : 0);
  Uniform* c = &tapes->c;
  c->fill(job->uniform);
  in_parallel(workers, [&](int64_t w) {
    Forward* forward = new Forward(*job, *c, job->keep ? &tapes->of[w] : nullptr, job->rows * w / workers, job->rows * (w + 1) / workers);
    forward->run();
    delete forward;
  });
  if (job->keep) return tapes;
  delete tapes;
  return nullptr;
}

void pn_pull(void* handle, const Pull* job) {
  Tapes* tapes = (Tapes*)handle;
  const Uniform* c = &tapes->c;
  const int64_t workers = (int64_t)tapes->of.size();
  std::vector<Gradients*> gradients;
  for (int64_t w = 0; w < workers; ++w) gradients.push_back(new Gradients());
  in_parallel(workers, [&](int64_t w) {
    Backward* backward = new Backward(*job, *c, tapes->of[w], *gradients[w]);
    backward->run();
    delete backward;
  });
  for (int64_t w = 1; w < workers; ++w) gradients[0]->join(*gradients[w]);
  for (int64_t row = 0; row < job->rows; ++row) {  // outputs that are y0 itself
    if (job->status[row] != OK) continue;
    for (Cursor times(job->ts + row * job->ts_stride, job->times, job->direction[row]); !times.done(); times.at += times.by) {
      if (times.time() != job->t0[row]) break;
      const Scalar* g = job->cotangents + (row * job->times + times.at) * DIM;
      for (int d = 0; d < DIM; ++d) job->to_y0[row * DIM + d] += g[d];
    }
  }
  gradients[0]->hand_on(*c, job->to_uniform);
  for (Gradients* each : gradients) delete each;
}

// The field alone at one time and state of each trajectory.
void pn_field(const Solve* job) {
  Uniform* c = new Uniform;
  c->fill(job->uniform);
  for (int64_t first = 0; first < job->rows; first += LANES) {
    PN_ALIGNED Lanes lanes;
    PN_ALIGNED S y[DIM], out[DIM];
    for (int l = 0; l < LANES; ++l) {
      const int64_t row = first + l < job->rows ? first + l : first;
      lanes.t0[l] = job->t0[row];
      for (int i = 0; i < DIM; ++i) y[i][l] = job->y0[row * DIM + i];
      for (int i = 0; i < ARGS; ++i) lanes.args[i][l] = job->args[row * ARGS + i];
    }
    field(*c, lanes.t0, y, lanes.args, out);
    for (int l = 0; l < LANES && first + l < job->rows; ++l)
      for (int i = 0; i < DIM; ++i) job->derivative[(first + l) * DIM + i] = out[i][l];
  }
  delete c;
}

// What the field at one time and state of each trajectory owes, for given cotangents of its values.
void pn_transpose(const Solve* job, const Pull* pull) {
#if PN_DIFFERENTIABLE
  Uniform* c = new Uniform;
  c->fill(job->uniform);
  Gradients* gradients = new Gradients();
  for (int64_t first = 0; first < job->rows; first += LANES) {
    PN_ALIGNED Lanes lanes;
    PN_ALIGNED S y[DIM], w[DIM], out[DIM], to_args[ARGS + 1];
    for (int l = 0; l < LANES; ++l) {
      const int64_t row = first + l < job->rows ? first + l : first;
      lanes.t0[l] = job->t0[row];
      for (int i = 0; i < DIM; ++i) y[i][l] = job->y0[row * DIM + i], w[i][l] = row == first + l ? pull->cotangents[row * DIM + i] : 0;
      for (int i = 0; i < ARGS; ++i) lanes.args[i][l] = job->args[row * ARGS + i], to_args[i][l] = 0;
    }
    Saved_field save;
    field_save(*c, lanes.t0, y, lanes.args, out, save);
    field_pull(*c, *gradients, save, w, y, to_args);
    for (int l = 0; l < LANES && first + l < job->rows; ++l) {
      for (int i = 0; i < DIM; ++i) pull->to_y0[(first + l) * DIM + i] = y[i][l];
      for (int i = 0; i < ARGS; ++i) pull->to_args[(first + l) * ARGS + i] = to_args[i][l];
    }
  }
  gradients->flush();
  gradients->hand_on(*c, pull->to_uniform);
  delete gradients;
  delete c;
#endif
}

int64_t pn_bytes(const void* handle) {
  int64_t bytes = 0;
  for (const Tape& tape : ((const Tapes*)handle)->of)
    bytes += (int64_t)(tape.blocks.size() * Tape::BLOCK_RECORDS * sizeof(Record) + tape.assignments.capacity() * sizeof(Assignment));
  return bytes;
}

// Times and states of accepted steps, slot by slot: t, t_end (slots, rows), y (slots, rows, DIM).
void pn_records(const void* handle, int64_t rows, double* t, double* t_end, Scalar* y) {
  for (const Tape& tape : ((const Tapes*)handle)->of) {
    int64_t row[LANES], slot[LANES];
    size_t entry = 0;
    for (int64_t n = 0; n < tape.count; ++n) {
      for (; entry < tape.assignments.size() && tape.assignments[entry].record <= n; ++entry) {
        row[tape.assignments[entry].lane] = tape.assignments[entry].row;
        slot[tape.assignments[entry].lane] = 0;
      }
      const Record& record = tape.blocks[n / Tape::BLOCK_RECORDS][n % Tape::BLOCK_RECORDS];
      for (int l = 0; l < LANES; ++l)
        if (record.mask >> l & 1) {
          const int64_t at = slot[l]++ * rows + row[l];
          t[at] = record.t[l];
          t_end[at] = record.t_end[l];
          for (int d = 0; d < DIM; ++d) y[at * DIM + d] = record.y[d][l];
        }
    }
  }
}

void pn_free(void* handle) { delete (Tapes*)handle; }
}
