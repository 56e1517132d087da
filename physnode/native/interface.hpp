// What is called from outside.
#pragma once

// Threads of 64 MiB of stack (touched pages alone are real): the default is 2 MiB where the limit is "unlimited".
template <class Work>
static void in_parallel(int64_t workers, Work work) {
  struct Share { Work* work; int64_t number; pthread_t thread; bool runs, failed; };
  std::vector<Share> others;
  for (int64_t w = 1; w < workers; ++w) others.push_back({&work, w, {}, false, false});
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, (size_t)64 << 20);
  for (Share& share : others)
    share.runs = !pthread_create(&share.thread, &attributes, [](void* given) -> void* {
      Share* mine = (Share*)given;
      try {
        (*mine->work)(mine->number);
      } catch (...) {  // no memory
        mine->failed = true;
      }
      return nullptr;
    }, &share);
  pthread_attr_destroy(&attributes);
  bool failed = false;
  try {
    work(0);
    for (Share& share : others)
      if (!share.runs) work(share.number);  // no thread was to be had
  } catch (...) {
    failed = true;
  }
  for (Share& share : others) {
    if (share.runs) pthread_join(share.thread, nullptr);
    failed = failed || share.failed;
  }
  if (failed) throw std::bad_alloc();
}

extern "C" {
// The steps, if they are kept; `failed` says that memory has run out, as what the next function returns does.
void* pn_solve(const Solve* job, int64_t* failed) {
  *failed = 0;
  try {
    const int64_t workers = job->threads;
    std::unique_ptr<Tapes> tapes(new Tapes);
    tapes->of.resize(job->keep ? workers : 0);
    tapes->c.fill(job->uniform);
    in_parallel(workers, [&](int64_t w) {
      Tape* tape = job->keep ? &tapes->of[w] : nullptr;
      std::unique_ptr<Forward> forward(
          new Forward(*job, tapes->c, tape, job->rows * w / workers, job->rows * (w + 1) / workers));
      forward->run();
    });
    return job->keep ? tapes.release() : nullptr;
  } catch (...) {
    *failed = 1;
    return nullptr;
  }
}

int64_t pn_pull(void* handle, const Pull* job) try {
  Tapes* tapes = (Tapes*)handle;
  const Uniform* c = &tapes->c;
  const int64_t workers = (int64_t)tapes->of.size();
  std::vector<std::unique_ptr<Gradients>> gradients;
  for (int64_t w = 0; w < workers; ++w) gradients.emplace_back(new Gradients());
  in_parallel(workers, [&](int64_t w) {
    std::unique_ptr<Backward> backward(new Backward(*job, *c, tapes->of[w], *gradients[w]));
    backward->run();
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
  return 0;
} catch (...) {
  return 1;
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

// Whether the field gives what is said, to a part `tolerance` of its largest component, or of y0 over the length of the solve.
int64_t pn_agrees(const Solve* job, const Scalar* says, double tolerance) {
  std::vector<Scalar> found(job->rows * DIM);
  Solve own = *job;
  own.derivative = found.data();
  pn_field(&own);
  for (int64_t row = 0; row < job->rows; ++row) {
    double scale = 0, size = 0;
    for (int i = 0; i < DIM; ++i) {
      scale = s_maximum(scale, (double)std::fabs(says[row * DIM + i]));
      size = s_maximum(size, (double)std::fabs(job->y0[row * DIM + i]));
    }
    scale = s_maximum(scale, size / std::fabs(job->t1[row] - job->t0[row]));
    if (!std::isfinite(scale)) continue;
    for (int i = 0; i < DIM; ++i)
      if (!(std::fabs(found[row * DIM + i] - says[row * DIM + i]) <= tolerance * scale)) return 0;
  }
  return 1;
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
