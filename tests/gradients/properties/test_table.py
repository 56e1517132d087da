"""Which test holds which property of an exact gradient; the properties that the engine must have for it are among them.

 1  Dense output has the order declared for it
    tests/engine/test_orders.py::test_order_of_outputs_inside_one_step
 2  Reading at the end is as good as stepping onto it, and one time keeps the time axis
    tests/gradients/properties/test_dense_output_and_times.py::test_reading_at_the_end_is_as_good_as_stepping_onto_it
    tests/gradients/properties/test_dense_output_and_times.py::test_one_requested_time_keeps_the_time_axis
 3  The gradient is that of the solve made, and times are float64 whatever the state is
    tests/gradients/properties/test_dense_output_and_times.py::test_the_gradient_is_that_of_the_solve_made
    tests/gradients/properties/test_dense_output_and_times.py::test_the_gradient_by_a_rate_is_that_of_the_stability_function
    tests/gradients/test_conformance.py::test_consistent_on_exponential_growth
 4  Both tolerances are obeyed
    tests/engine/test_controllers.py::TestAdaptive::test_each_tolerance_counts
 5  Derivatives by output times and by the epoch exist and are right
    tests/gradients/properties/test_time_gradients.py::test_output_times_and_the_epoch
    tests/gradients/properties/test_time_gradients.py::test_against_runge_kutta_steps_written_out
    tests/gradients/properties/test_time_gradients.py::test_both_ways_from_an_inner_epoch
    tests/gradients/properties/test_time_gradients.py::test_they_tend_to_the_continuous_formulas
 6  The first step and the controller carry no gradient
    tests/gradients/properties/test_what_is_differentiated.py::test_the_first_step_and_the_controller_carry_no_gradient
 7  An unused parameter gets nothing, a field without the state works, parameters come from any iterable
    tests/gradients/properties/test_what_is_differentiated.py::test_an_unused_parameter_gets_nothing_a_field_may_ignore_the_state
 8  Tensors that a closure captures are found, or an error is raised
    tests/gradients/properties/test_what_is_differentiated.py::test_tensors_captured_by_a_closure_get_their_share
    tests/gradients/test_conformance.py::TestEveryGradientOfEveryMethod::test_equals_direct
    tests/gradients/test_variables.py::test_a_tensor_that_the_first_call_did_not_read_is_refused
 9  A parameter edited in place between forward and backward raises
    tests/gradients/properties/test_honesty.py::test_a_parameter_edited_between_solve_and_backward_raises
    tests/gradients/properties/test_honesty.py::test_dense_output_after_an_edit_raises
10  A second backward works where asked for, and a solve leaves nothing behind
    tests/gradients/properties/test_honesty.py::test_a_second_backward_is_refused_unless_asked_for_and_then_adds_the_same
    tests/gradients/properties/test_honesty.py::test_a_solve_leaves_nothing_behind
11  Second derivatives are true
    tests/gradients/properties/test_honesty.py::test_second_derivatives_are_true
    tests/gradients/properties/test_honesty.py::test_second_derivatives_on_adaptive_steps_belong_to_the_solve
    tests/gradients/test_second_derivatives.py::test_hessian_products_equal_direct
12  Buffers are moved by no step made again: training is refused, evaluation leaves them alone
    tests/gradients/properties/test_honesty.py::TestLayersOfTwoModes::test_refused_in_training
    tests/gradients/properties/test_honesty.py::TestLayersOfTwoModes::test_exact_in_evaluation_and_left_alone
13  Random fields are refused
    tests/gradients/properties/test_honesty.py::test_random_fields_are_refused
    tests/gradients/properties/test_honesty.py::test_noise_that_is_the_same_at_every_call_is_no_randomness
14  A jump in time at a step end is seen from the side of the step
    tests/gradients/properties/test_dense_output_and_times.py::test_a_jump_at_a_step_end_is_seen_from_the_side_of_the_step
    tests/gradients/test_variables.py::test_a_jump_in_time_at_a_step_end_stays_on_its_side
    tests/engine/test_signals.py::TestJumpTimes::test_both_sides_forward_and_backward
15  Every method has every gradient: fixed steps, both precisions, both directions, several outputs
    tests/gradients/test_conformance.py::TestEveryGradientOfEveryMethod::test_equals_direct
    tests/gradients/test_conformance.py::TestOnFixedSteps::test_equals_differences
    tests/gradients/test_conformance.py::TestOnFixedSteps::test_in_float32
16  States in parts, complex states and plain functions work
    tests/gradients/properties/test_what_is_differentiated.py::test_states_in_parts_complex_states_and_functions_work
17  Output times cost no steps, the field is called inside the span only, bad times raise
    tests/gradients/properties/test_dense_output_and_times.py::test_output_times_cost_no_steps_and_bad_ones_raise
    tests/gradients/properties/test_dense_output_and_times.py::test_the_field_is_called_inside_the_span_only
    tests/engine/test_evaluations.py::test_never_outside_the_span
    tests/engine/test_evaluations.py::test_splittings_stay_inside_the_span
18  What is not finite is reported with trajectory and time
    tests/engine/test_failures.py::TestMessage::test_names_trajectory_time_reason_and_remedy
    tests/engine/test_failures.py::test_gradients_do_not_notice
19  Each trajectory has its own steps
    tests/engine/test_controllers.py::TestOneStepForEachTrajectory::test_a_slow_one_is_not_slowed_by_a_fast_neighbour
20  The last derivative of a step is the first of the next, and no step is computed twice
    tests/engine/test_evaluations.py::test_the_last_derivative_of_a_step_is_the_first_of_the_next
    tests/engine/test_evaluations.py::test_the_count_is_the_true_one
21  Error weights sum to zero, and estimate
    tests/gradients/properties/test_engine_behaviour.py::test_error_weights_sum_to_zero
    tests/engine/test_tableaus.py::test_the_error_estimate_has_its_declared_order
22  An unknown method or option raises with the known ones, and a fixed step is that step
    tests/test_solve.py::TestOptions::test_unknown_method
    tests/test_solve.py::TestOptions::test_a_misspelt_option
    tests/engine/test_controllers.py::TestFixed::test_four_stages_ten_steps_forty_evaluations
23  Memory is as claimed
    tests/gradients/properties/test_memory.py::TestSweeps::test_forward_keeps_records_of_the_steps_and_no_graph
    tests/gradients/properties/test_memory.py::TestSweeps::test_backward_holds_one_graph_whatever_the_number_of_steps
    tests/gradients/properties/test_memory.py::test_all_is_freed_with_the_loss
24  Parameter gradients accumulate in place
    tests/gradients/properties/test_memory.py::TestSweeps::test_parameter_gradients_are_added_up_in_place
25  Waiting for a device does not grow with the batch, and no cache is emptied
    tests/gradients/properties/test_engine_behaviour.py::test_waiting_for_the_device_does_not_grow_with_the_batch
26  The name of a gradient says what it does
    tests/gradients/properties/test_engine_behaviour.py::test_the_name_of_a_gradient_says_what_it_does
27  Truth and noise of simulated data are sound
    tests/gradients/properties/test_engine_behaviour.py::test_truth_and_noise_of_simulated_data_are_sound
28  Exact to rounding in every mode
    tests/gradients/properties/test_what_is_differentiated.py::test_exact_to_rounding_against_the_graph_of_the_same_steps
    tests/gradients/properties/test_what_is_differentiated.py::test_gradients_are_the_slopes_of_the_loss
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def names(path: Path) -> set[str]:
    """The tests of a file: functions, and methods as Class::function."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def test_each_property_has_tests_and_each_of_them_exists() -> None:
    assert __doc__
    parts = re.split(r"^ ?(\d+)  ", __doc__, flags=re.MULTILINE)[1:]
    numbers = [int(number) for number in parts[::2]]
    assert numbers == list(range(1, 29))
    for number, text in zip(numbers, parts[1::2], strict=True):
        tests = re.findall(r"^    (tests/\S+?\.py)::(\S+)$", text, flags=re.MULTILINE)
        assert tests, number
        for path, name in tests:
            assert name in names(ROOT / path), f"{number}: {path}::{name}"
