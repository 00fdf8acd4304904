import json
import math
import random
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from ladi.cli import run_report
from ladi.report import (
    build_report,
    differences_table,
    numbers_table,
    plots,
    results_table,
    seeds_table,
    update_markdown,
    write_figure,
)
from ladi.report.data import read_evaluation, read_metrics, read_reconstruction, read_run
from ladi.report.differences import differences
from ladi.report.groups import main_evaluations, sweeps, widened


def estimate(value, width=0.02):
    return {"value": value, "low": value - width, "high": value + width}


def evaluation(label="LaDiR text", solved=0.55, **changes):
    entry = {
        "label": label,
        "task": "countdown4",
        "split": "test",
        "num_questions": 500,
        "num_samples": 100,
        "readout": "text",
        "num_steps": 30,
        "guidance": 0.0,
        "initial_noise": 1.0,
        "noise_level": 0.0,
        "temperature": 0.0,
        "pass@k": {str(k): estimate(1 - (1 - solved) ** (k**0.5)) for k in (1, 2, 5, 10, 20, 50, 100)},
        "distinct_valid": estimate(4 * solved + 1, 0.1),
        "latent_use": None,
        "tokens_processed": 123456,
        "wall_s": 200.4,
        "seed": 0,
        "command": "ladi eval --run runs/a | tee log",
        "commit": "0123abc",
        "machine": "one laptop",
    }
    return entry | changes


def latent_use(intact):
    values = {"intact": intact, "zeroed": 0.04, "shuffled": 0.03, "noise": 0.02}
    return {name: estimate(value, 0.01) for name, value in values.items()}


def denoising(num_times=31, num_trajectories=24):
    rng = random.Random(0)
    times = [1 - i / (num_times - 1) for i in range(num_times)]
    goal = ["3 * 8 = 24; left 5 7", "24 + 7 = 31; left 5", "31 - 5 = 26"]
    texts = [
        ["".join(c if rng.random() > t else rng.choice("0123456789+-*/=; ") for c in block) for block in goal]
        for t in times
    ]
    angles = [rng.choice([0.3, 2.2, 4.0]) + rng.gauss(0, 0.12) for _ in range(num_trajectories)]
    starts = [(rng.gauss(0, 1), rng.gauss(0, 1)) for _ in angles]
    xy = [
        [
            [t * x + (1 - t) * 4 * math.cos(a), t * y + (1 - t) * 3 * math.sin(a)]
            for a, (x, y) in zip(angles, starts, strict=True)
        ]
        for t in times
    ]
    question = "numbers 3 5 7 8, target 26"
    traced = {"question": question, "times": times, "texts": texts, "answer": "3*8+7-5", "correct": True}
    correct = [a < 3 for a in angles]
    return {
        "questions": [traced, {**traced, "correct": False, "answer": "3*8"}],
        "pca": {"question": question, "times": times, "xy": xy, "correct": correct},
    }


def write_run(run_dir, evaluations=(), trace=None, steps=0):
    (run_dir / "eval").mkdir(parents=True)
    for i, entry in enumerate(evaluations):
        (run_dir / "eval" / f"{i:02d}.json").write_text(json.dumps(entry))
    if trace is not None:
        (run_dir / "eval" / "denoising.json").write_text(json.dumps(trace))
    if steps:
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in training(steps)))
    provenance = {"command": "ladi train reasoner", "commit": "0123abc"}
    (run_dir / "config.json").write_text(json.dumps({"steps": steps, "optim": {"lr": 3e-4}}))
    (run_dir / "provenance.json").write_text(json.dumps(provenance))
    return run_dir


def training(steps):
    rng = random.Random(1)
    for step in range(steps):
        level = 2 * math.exp(-step / 200) + 0.05
        losses = {key: level * math.exp(rng.gauss(0, 0.2)) for key in ("loss/total", "loss/flow", "loss/text")}
        held_out = {"validation/loss/flow": level} if step % 100 == 0 else {}
        yield {"step": step, **losses, **held_out, "loss/policy": rng.gauss(0, 1), "time/step_s": 0.1}


def full_run(run_dir):
    def swept(solved, **changes):
        return evaluation("LaDiR text", solved, num_samples=16, **changes)

    bare = {"num_steps": None, "guidance": None, "initial_noise": None, "noise_level": None}
    evaluations = [
        evaluation("LaDiR text", 0.55, latent_use=latent_use(0.55)),
        evaluation("LaDiR text after RL", 0.61, latent_use=latent_use(0.61), distinct_valid=estimate(3.1)),
        evaluation("LaDiR latent readout <script>alert(1)</script>", 0.48, readout="latent"),
        evaluation("Autoregressive, T=1", 0.54, **bare, temperature=1.0, distinct_valid=estimate(2.2)),
    ]
    evaluations += [swept(s, num_steps=n) for n, s in [(1, 0.1), (5, 0.4), (10, 0.5), (60, 0.55)]]
    evaluations += [swept(s, guidance=g) for g, s in [(0.5, 0.53), (1.0, 0.49)]]
    evaluations += [swept(s, initial_noise=x) for x, s in [(0.8, 0.57), (1.2, 0.5)]]
    return write_run(run_dir, evaluations, denoising(), steps=1500)


class Checker(HTMLParser):
    """Collects tags, ids and visible text, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.text, self.open, self.links = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(page):
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    return checker


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run_dir = full_run(folder / "runs" / "reasoner")
    return build_report([run_dir], folder / "out" / "report.html", title="Countdown & co").read_text()


@pytest.mark.parametrize(
    "title",
    [
        "Summary",
        "pass@k",
        "Distinct valid solutions",
        "Sampler settings",
        "Are the latents used?",
        "Training losses",
        "Latents of one question",
        "Puzzles being denoised",
        "Provenance",
    ],
)
def test_every_section_is_there_when_its_data_is(page, title):
    assert f"<h2>{title}</h2>" in page


def test_page_is_well_formed_and_ids_are_unique(page):
    checker = check(page)
    assert len(checker.ids) == len(set(checker.ids))
    assert all(link.startswith("#") and link[1:] in checker.ids for link in checker.links)


def test_page_needs_nothing_from_outside_and_no_script(page):
    assert "script" not in check(page).tags
    assert "@import" not in page
    assert "url(http" not in page


def test_text_from_files_is_escaped_everywhere(page):
    assert "<script" not in page
    assert "LaDiR latent readout &lt;script&gt;" in page
    assert "<title>Countdown &amp; co</title>" in page


def test_plots_are_valid_xml_in_the_colours_of_the_page(page):
    svgs = re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 12  # pass@k, distinct, three sweeps, coverage, latents, four losses, PCA
    for svg in svgs:
        ET.fromstring(svg.replace("xlink:", ""))
        assert "#0f00" not in svg
    assert "LaDiR text after RL" in "".join(check(svgs[1]).text)


def test_losses_on_held_out_problems_are_drawn_beside_those_of_training():
    points, held_out = [(i, 1.0 + i) for i in range(9)], [(3, 0.1), (6, 40.0)]
    alone, both = (plots.loss_curve(points, dots, "loss/flow", "x") for dots in ((), held_out))
    assert [len(re.findall(r"<use[^>]*var\(--c-01\)", svg)) for svg in (alone, both)] == [0, 2]
    assert ">0.1</text>" in both, "the axis holds both"
    assert ">0.1</text>" not in alone


def test_the_same_runs_give_the_same_page(page, tmp_path):
    run_dir = full_run(tmp_path / "reasoner")
    again = build_report([run_dir], tmp_path / "report.html", title="Countdown & co").read_text()
    assert again == page


def test_summary_shows_percent_with_interval(page):
    assert "55.0<small class='range'>53.0&ndash;57.0</small>" in page
    assert "3&nbsp;min&nbsp;20&nbsp;s" in page


def test_only_changed_characters_are_marked(tmp_path):
    question = {
        "question": "q",
        "times": [1.0, 0.0],
        "texts": [["1+2"], ["1+<"]],
        "answer": "",
        "correct": True,
    }
    run_dir = write_run(tmp_path / "run", trace={"questions": [question]})
    page = build_report([run_dir], tmp_path / "report.html").read_text()
    assert "1+<mark>&lt;</mark>" in page
    assert page.count("<mark>") == 2  # the other one explains the mark


def test_runs_of_reinforcement_learning_share_their_plots(tmp_path):
    runs = []
    for name, keys in {"grpo": ("reward/mean", "text/entropy"), "rl": ("reward/mean", "latent/spread")}.items():
        run = write_run(tmp_path / name)
        lines = [json.dumps({"step": step, **dict.fromkeys(keys, 0.01 * step)}) for step in range(20)]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        runs.append(run)
    page = build_report(runs, tmp_path / "r.html").read_text()
    section = page.split("<section id='rl'>")[1].split("</section>")[0]
    assert section.count("<svg") == 3  # reward, entropy, spread
    reward = section.split("<svg")[1]
    assert "--c-00" in reward
    assert "--c-01" in reward
    check(page)


def test_a_run_has_the_colour_of_the_label_its_model_was_evaluated_with(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("rl", "other", "grpo")]
    for run in runs:
        (run / "metrics.jsonl").write_text(json.dumps({"step": 0, "reward/mean": 0.5}) + "\n")
    labels = {"AR": "assets/ar", "GRPO": str(tmp_path / "grpo" / "final"), "LaDi-RL": str(tmp_path / "rl" / "final")}
    evaluations = [evaluation(label, model_dir=model) for label, model in labels.items()]
    page = build_report([write_run(tmp_path / "evals", evaluations), *runs], tmp_path / "r.html").read_text()
    legend = page.split("<section id='rl'>")[1].split("<ul class='legend'>")[1].split("</ul>")[0]
    colors = {item.split("</i>")[1]: re.search(r"--c-(\d+)", item)[1] for item in legend.split("<li>")[1:]}
    assert {name.removesuffix("</li>"): color for name, color in colors.items()} == {
        "rl": "02",
        "other": "03",
        "grpo": "01",
    }


def test_methods_stand_beside_each_other_with_their_costs(tmp_path):
    policies = {
        "rl": {"num_latents": 16, "texts_per_latent": 5},
        "dlr": {"num_generations": 32, "num_decoded": 6},
        "grpo": {"num_generations": 80},
    }
    runs = [write_run(tmp_path / name) for name in (*policies, "sft")]
    for run in runs:
        policy = {"policy": policies[run.name]} if run.name in policies else {}
        (run / "config.json").write_text(json.dumps({**policy, "loop": {"batch_size": 24}}))
        lines = [
            {"step": i, "time/step_s": 1.0 + i, **({"main/forwards": 7.0} if run.name == "dlr" else {})} for i in (0, 1)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = build_report(runs, tmp_path / "r.html").read_text()
    section = page.split("<section id='methods'>")[1].split("</section>")[0]
    rows = [row.split("</tr>")[0] for row in section.split("<tr>")[2:]]
    costs = {"rl": "1920 texts, 1.5&nbsp;s", "dlr": "144 texts, 1.5&nbsp;s, 7 passes", "grpo": "1920 texts, 1.5&nbsp;s"}
    assert len(rows) == 3
    for row, (name, cost) in zip(rows, costs.items(), strict=True):
        assert f">{name}<" in row
        assert cost in row


def test_accuracy_is_drawn_against_diversity_over_training(tmp_path):
    run = write_run(tmp_path / "rl")
    lines = [
        json.dumps(
            {"step": i, "reward/mean": 0.5, "rollout/pass@1": 0.3 + 0.01 * i, "rollout/distinct_correct": 3 - 0.1 * i}
        )
        for i in range(20)
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = build_report([run], tmp_path / "r.html").read_text()
    section = page.split("<section id='rl'>")[1].split("</section>")[0]
    assert section.index("Accuracy against diversity") < section.index("mean reward")
    assert "distinct correct answers of a group against pass@1 of the rollouts (%) in training" in section


def test_sections_without_data_are_left_out(tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.jsonl").touch()
    page = build_report([tmp_path / "begun"], tmp_path / "report.html").read_text()
    check(page)
    assert "<h2>" not in page


def test_an_evaluation_with_only_the_required_keys_is_shown(tmp_path):
    entry = evaluation(**{"pass@k": {"1": estimate(0.0, 0.0)}})
    required = ("label", "task", "split", "num_questions", "num_samples", "pass@k")
    run_dir = write_run(tmp_path / "run", [{key: entry[key] for key in required}])
    page = build_report([run_dir], tmp_path / "report.html").read_text()
    check(page)
    assert "<h2>Summary</h2>" in page
    assert "<h2>pass@k</h2>" not in page


def test_runs_with_the_same_name_are_told_apart(tmp_path):
    run_dirs = [write_run(tmp_path / parent / "run", steps=3) for parent in ("a", "b")]
    page = build_report(run_dirs, tmp_path / "report.html").read_text()
    assert "a/run" in page
    assert "b/run" in page


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"label": 3}, "label"),
        ({"pass@k": {}}, "pass@k"),
        ({"pass@k": {"one": estimate(0.5)}}, "pass@k.one"),
        ({"pass@k": {"1": {"value": 0.5, "low": 0.4}}}, "pass@k.1.high"),
        ({"pass@k": {"1": 0.5}}, "pass@k.1"),
        ({"num_questions": True}, "num_questions"),
        ({"per_question": {"num_correct": [1], "num_distinct": [1]}}, "per_question.num_correct"),
        ({"distinct_valid": {"value": math.nan, "low": 0, "high": 1}}, "distinct_valid.value"),
        ({"latent_use": {"intact": None}}, "latent_use.intact"),
    ],
)
def test_a_malformed_evaluation_names_its_file_and_key(tmp_path, changes, key):
    run_dir = write_run(tmp_path / "run", [evaluation(**changes)])
    with pytest.raises(ValueError, match=rf"00\.json: key '{key}'"):
        build_report([run_dir], tmp_path / "report.html")


def test_a_missing_key_is_named(tmp_path):
    entry = evaluation()
    del entry["split"]
    with pytest.raises(ValueError, match="key 'split' is missing"):
        read_run(write_run(tmp_path / "run", [entry]), "run")


def test_broken_json_and_missing_folders_are_named(tmp_path):
    run_dir = write_run(tmp_path / "run")
    (run_dir / "eval" / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: not valid JSON"):
        read_run(run_dir, "run")
    with pytest.raises(ValueError, match="no such run folder"):
        read_run(tmp_path / "nowhere", "nowhere")


def test_a_trace_of_the_wrong_length_names_its_place(tmp_path):
    trace = denoising()
    trace["questions"][1]["texts"] = trace["questions"][1]["texts"][:-1]
    with pytest.raises(ValueError, match=r"denoising\.json: key 'questions\[1\]\.texts'"):
        read_run(write_run(tmp_path / "run", trace=trace), "run")


def test_metrics_keep_the_last_value_of_a_step_and_ignore_an_unfinished_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "loss/a": 5.0}', '{"step": 0, "loss/a": 2}', '{"step": 1, "loss/a": 3.0}', '{"ste']
    path.write_text("\n".join(lines))
    assert read_metrics(path) == {"loss/a": [(0, 2.0), (1, 3.0)]}


def test_a_sweep_differs_in_one_setting_only(tmp_path):
    evaluations = read_run(full_run(tmp_path / "run"), "run").evaluations
    (steps,) = sweeps(evaluations, "num_steps")
    assert [e.num_steps for e in steps] == [1, 5, 10, 30, 60]
    (guidance,) = sweeps(evaluations, "guidance")
    assert [e.guidance for e in guidance] == [0.0, 0.5, 1.0]
    assert len(main_evaluations(evaluations)) == 4
    assert all(e.num_samples == 100 for e in main_evaluations(evaluations))


def cells_of(row):
    return [cell.strip() for cell in row.replace("\\|", "PIPE").strip("|").split("|")]


def test_results_table_holds_percent_and_intervals(tmp_path):
    run_dir = write_run(tmp_path / "run", [evaluation("a|b <i>")])
    header, rule, row = results_table([run_dir]).splitlines()[:3]
    cells = dict(zip(cells_of(header), cells_of(row), strict=True))
    assert len(cells_of(rule)) == len(cells)
    solved = read_evaluation(run_dir / "eval" / "00.json").pass_at[10].value
    assert cells["model"] == "aPIPEb &lt;i>"
    assert cells["questions x samples"] == "500 x 100"
    assert cells["pass@1 (%)"] == "55.0 [53.0, 57.0]"
    assert cells["pass@10 (%)"].startswith(f"{100 * solved:.1f} [")
    assert cells["distinct"] == "3.20 [3.10, 3.30]"


def test_every_row_of_the_results_has_its_source_below(tmp_path):
    run_dir = write_run(tmp_path / "run", [evaluation("a|b <i>")])
    (line,) = [line for line in results_table([run_dir]).splitlines() if line.startswith("- ")]
    for part in ("a\\|b &lt;i>", "`ladi eval --run runs/a \\| tee log`", "seed 0", "commit `0123abc`"):
        assert part in line


def test_settings_have_a_column_where_they_differ(tmp_path):
    same = write_run(tmp_path / "same", [evaluation(), evaluation("other")])
    assert " steps " not in results_table([same])
    swept = write_run(tmp_path / "swept", [evaluation(num_steps=5), evaluation(num_steps=50)])
    header, _, first, second = results_table([swept]).splitlines()[:4]
    column = cells_of(header).index("steps")
    assert [cells_of(row)[column] for row in (first, second)] == ["5", "50"]
    token = write_run(tmp_path / "token", [evaluation(num_steps=0), evaluation(num_steps=5), evaluation(num_steps=50)])
    assert cells_of(results_table([token]).splitlines()[2])[column] == "-"


def test_the_figure_is_an_svg_of_its_own_with_every_label(tmp_path):
    run_dir = write_run(tmp_path / "run", [evaluation("first"), evaluation("a <b>")])
    path = write_figure([run_dir], tmp_path / "figures" / "pass.svg")
    root = ET.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"first", "a <b>", "pass@k (%)"} <= set(texts)
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", path.read_text()))
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", path.read_text()))
    empty = write_run(tmp_path / "empty", [])
    with pytest.raises(ValueError, match="no evaluation at several k"):
        write_figure([empty], tmp_path / "none.svg")
    mixed = write_run(tmp_path / "mixed", [evaluation(), evaluation(split="test_unseen")])
    with pytest.raises(ValueError, match="countdown4, test; countdown4, test_unseen"):
        write_figure([mixed], tmp_path / "none.svg")


def test_coverage_shows_sweeps_of_noise_and_temperature_beside_single_models(tmp_path):
    noisy = [evaluation("latent", s, initial_noise=x) for x, s in ((2.0, 0.4), (1.0, 0.5))]
    token = [evaluation("token", s, num_steps=0, temperature=x) for x, s in ((1.0, 0.6), (1.7, 0.25))]
    run_dir = write_run(tmp_path / "run", [*noisy, *token, evaluation("base", 0.75)])
    groups = widened(read_run(run_dir, "run").evaluations)
    found = [(name, [(e.label, e.pass_at[1].value) for e in group]) for name, group in groups]
    assert found == [
        ("initial_noise", [("latent", 0.5), ("latent", 0.4)]),
        ("temperature", [("token", 0.6), ("token", 0.25)]),
        ("", [("base", 0.75)]),
    ]
    root = ET.parse(write_figure([run_dir], tmp_path / "wide.svg", "coverage")).getroot()
    texts = ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"latent", "token", "base", "1.7", "pass@100 (%)"} <= set(texts)
    one = {"pass@k": {"1": estimate(0.5)}, "num_samples": 1}
    greedy = write_run(tmp_path / "greedy", [evaluation(**one), evaluation(**one, temperature=1.0)])
    assert widened(read_run(greedy, "greedy").evaluations) == [], "one sample covers nothing"
    assert "The last plot" not in build_report([greedy], tmp_path / "greedy.html").read_text()
    single = write_run(tmp_path / "single", [evaluation()])
    assert widened(read_run(single, "single").evaluations) == []
    with pytest.raises(ValueError, match="no evaluation of one label at several initial noises or temperatures"):
        write_figure([single], tmp_path / "none.svg", "coverage")


def test_seeds_share_a_row_with_their_mean_and_range(tmp_path):
    runs = [evaluation(solved=s, seed=i) for i, s in enumerate((0.5, 0.6, 0.7))]
    run_dir = write_run(tmp_path / "run", [*runs, evaluation("other", 0.4), evaluation("other", 0.8, num_steps=5)])
    header, _, three, other, swept = seeds_table([run_dir]).splitlines()[:5]
    cells = dict(zip(cells_of(header), cells_of(three), strict=True))
    assert cells["seeds"] == "0, 1, 2"
    assert cells["pass@1 (%)"] == "60.0 [58.0, 62.0] (50.0 to 70.0)"
    assert cells["distinct"] == "3.40 [3.30, 3.50] (3.00 to 3.80)"
    alone = [dict(zip(cells_of(header), cells_of(row), strict=True))["pass@1 (%)"] for row in (other, swept)]
    assert alone == ["40.0 [38.0, 42.0]", "80.0 [78.0, 82.0]"]  # another sampler setting is another row
    assert seeds_table([run_dir]).count("\n- ") == 5


def test_what_a_vae_gives_back_is_drawn_against_noise(tmp_path):
    run = write_run(tmp_path / "stage a", steps=20)
    assert "id='reconstruction'" not in build_report([run], tmp_path / "without.html").read_text()
    path = run / "reconstruction.json"
    path.write_text(json.dumps({"vae/exact_mean": 0.99, "vae/exact_noise_1.0": 0.4, "vae/exact_noise_0.5": 0.8}))
    assert list(read_reconstruction(path).items()) == [(0.0, 0.99), (0.5, 0.8), (1.0, 0.4)]
    page = build_report([run], tmp_path / "with.html").read_text()
    section = page.split("<section id='reconstruction'>")[1].split("</section>")[0]
    assert "stage a" in section
    assert "blocks decoded exactly (%)" in section
    path.write_text(json.dumps({"vae/exact_noise_1.0": 0.4}))
    with pytest.raises(ValueError, match=r"reconstruction.json: key 'vae/exact_mean' is missing"):
        build_report([run], tmp_path / "broken.html")


def test_plots_show_the_mean_over_seeds_and_not_the_first(tmp_path):
    def drawn(name, *seeds):
        runs = [evaluation("A", s, seed=i, latent_use=latent_use(s)) for i, s in enumerate(seeds)]
        page = build_report([write_run(tmp_path / name, runs)], tmp_path / f"{name}.html").read_text()
        sections = {
            key: page.split(f"<section id='{key}'>")[1].split("</section>")[0]
            for key in ("pass", "distinct", "latents")
        }
        return {key: re.sub(r"\b[mh][0-9a-f]{10}\b", "", section) for key, section in sections.items()}

    several, mean, first = drawn("several", 0.2, 0.6), drawn("mean", 0.4, 0.4), drawn("first", 0.2)
    for key in ("distinct", "latents"):  # linear in `solved`
        assert several[key] == mean[key] != first[key]
    assert several["pass"] != first["pass"]


def test_results_table_takes_single_files_and_leaves_missing_ks_open(tmp_path):
    entry = evaluation(**{"pass@k": {"1": estimate(0.5)}, "distinct_valid": None})
    run_dir = write_run(tmp_path / "run", [entry, evaluation()])
    few, many = (results_table([run_dir / "eval" / name]) for name in ("00.json", "01.json"))
    assert "| 50.0 [48.0, 52.0] | - |" in few
    assert "pass@10" not in few
    assert "pass@10" in many


def counted(label, num_correct, **changes):
    """An evaluation of 10 samples a question, all correct ones different."""
    each = {"num_correct": num_correct, "num_distinct": num_correct}
    fields = {"num_questions": len(num_correct), "num_samples": 10, "pass@k": {"1": estimate(0.5), "4": estimate(0.8)}}
    return evaluation(label, **fields, per_question=each, **changes)


def test_differences_are_paired_by_question(tmp_path):
    """One sample more of every question is a certain difference, however much questions differ in difficulty."""
    base = [i % 10 for i in range(100)]
    run_dir = write_run(tmp_path / "run", [counted("base", base), counted("better", [c + 1 for c in base])])
    title, _, row = differences_table([run_dir], "base").splitlines()
    found = dict(zip(cells_of(title), cells_of(row), strict=True))
    assert found["less base"] == "better"
    assert found["pass@1 (points)"] == "+10.0 [+10.0, +10.0]"
    assert found["distinct"] == "+1.00 [+1.00, +1.00]"
    gain = [math.comb(10 - c, 4) / math.comb(10, 4) - math.comb(9 - c, 4) / math.comb(10, 4) for c in base]
    assert found["pass@4 (points)"].startswith(f"{100 * sum(gain) / 100:+.1f} [")


def test_the_interval_of_a_difference_is_that_of_its_mean(tmp_path):
    draw = random.Random(0)
    base, other = ([draw.randint(0, 10) for _ in range(2000)] for _ in range(2))
    run_dir = write_run(tmp_path / "run", [counted("base", base), counted("other", other)])
    found = differences(read_run(run_dir, "run").evaluations, "base")[0].pass_at[1]
    values = [(b - a) / 10 for a, b in zip(base, other, strict=True)]
    mean = sum(values) / len(values)
    half = 1.96 * (sum((v - mean) ** 2 for v in values) / len(values) ** 2) ** 0.5
    assert found.value == pytest.approx(mean)
    assert (found.low, found.high) == (
        pytest.approx(mean - half, abs=0.1 * half),
        pytest.approx(mean + half, abs=0.1 * half),
    )


def test_a_folder_without_a_run_is_refused_with_the_runs_in_it(tmp_path):
    write_run(tmp_path / "sft", [evaluation()])
    (tmp_path / "sft" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no run: no metrics, no evaluations; name those in it: .*sft$"):
        run_report([str(tmp_path), "--out", str(tmp_path / "r.html")])
    with pytest.raises(ValueError, match="needs at least one run's folder"):
        run_report(["--out", str(tmp_path / "r.html")])
    assert not (tmp_path / "r.html").exists()


def test_solutions_among_other_numbers_of_samples_are_not_compared(tmp_path):
    run_dir = write_run(tmp_path / "run", [counted("base", [1, 5]), counted("more", [1, 5]) | {"num_samples": 20}])
    (row,) = differences_table([run_dir], "base").splitlines()[2:]
    assert cells_of(row)[-1] == "-"


def test_evaluations_with_other_texts_per_latent_are_no_seeds_of_one(tmp_path):
    two = [counted("two", [2, 8], texts_per_latent=1), counted("two", [4, 6], texts_per_latent=2)]
    run_dir = write_run(tmp_path / "run", [counted("base", [1, 5]), *two])
    assert len(differences(read_run(run_dir, "run").evaluations, "base")) == 2


def test_differences_average_seeds_question_by_question(tmp_path):
    seeds = [counted("two", [2, 8], seed=0), counted("two", [4, 6], seed=1)]
    run_dir = write_run(tmp_path / "run", [counted("base", [1, 5]), *seeds])
    (row,) = differences_table([run_dir], "base").splitlines()[2:]
    assert cells_of(row)[1] == "+20.0 [+20.0, +20.0]"  # 3 - 1 and 7 - 5 of 10


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([counted("a", [1])], "0 models bear the label 'base'; compare with one of these: 'a'"),
        ([counted("base", [1]), counted("base", [1], num_steps=5)], "2 models bear the label 'base'"),
        ([counted("base", [1]), counted("a", [1, 2])], "2 questions of countdown4 test cannot be paired with 1"),
        ([counted("base", [1]), counted("a", [1], split="b")], "1 questions of countdown4 b cannot be paired with 1"),
        ([counted("base", [1]), counted("a", [1]) | {"per_question": None}], "key 'per_question' is missing"),
        (
            [counted("base", [1], questions_sha256="ab"), counted("a", [1], questions_sha256="cd")],
            "asked different questions of countdown4 test",
        ),
    ],
)
def test_what_cannot_be_paired_is_refused(tmp_path, others, said):
    run_dir = write_run(tmp_path / "run", others)
    with pytest.raises(ValueError, match=said):
        differences_table([run_dir], "base")


def test_report_puts_differences_below_the_table(tmp_path):
    run_dir = write_run(tmp_path / "run", [counted("base", [1, 5]), counted("other", [2, 6])])
    notes = tmp_path / "notes.md"
    notes.write_text("<!-- results:x -->\n<!-- /results:x -->\n")
    run_report([str(run_dir), "--out", str(tmp_path / "r.html"), "--markdown", f"{notes}#x", "--against", "base"])
    text = notes.read_text()
    assert results_table([run_dir]) + "\n\n" + differences_table([run_dir], "base") in text


def test_texts_without_a_verdict_are_told_with_what_made_the_row(tmp_path):
    left = evaluation(not_judged={"timed_out": 1200, "failed": 34})
    run_dir = write_run(tmp_path / "run", [left, evaluation(not_judged={"timed_out": 0, "failed": 0}), evaluation()])
    first, second, third = results_table([run_dir]).split("\n- ")[1:]
    assert "one laptop, 1,234 texts counted as wrong without a verdict, 3 min" in first
    assert "verdict" not in second + third


def test_measured_numbers_become_a_table_with_their_source():
    source = {"command": "ladi bench", "commit": "0123abc", "machine": "two cores"}
    flat = numbers_table({"step_s": 0.1234, "tokens": 40_321}, source).splitlines()
    assert flat[2:4] == ["| step s | 0.123 |", "| tokens | 40,321 |"]
    assert flat[-1] == "`ladi bench`, commit `0123abc`, two cores"
    nested = numbers_table({"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 4}}, source).splitlines()
    assert nested[0] == "|  | x | y |"
    assert nested[3] == "| b | 3 | 4 |"
    assert numbers_table({"a": {"x": 1.0}, "b": {"y": -0.004712}}, source).splitlines()[2:4] == [
        "| a | 1 | - |",
        "| b | - | -0.00471 |",
    ]


def test_update_markdown_replaces_only_between_its_markers(tmp_path):
    path = tmp_path / "results.md"
    before = "# Results\n<!-- results:a -->\n"
    after = "\n<!-- /results:a -->\n<!-- results:b --> other <!-- /results:b -->\n"
    path.write_text(f"{before}old{after}")
    update_markdown(path, "a", r"| \1 |")
    update_markdown(path, "a", r"| \1 |")
    assert path.read_text() == f"{before}\n| \\1 |\n{after}"


def test_update_markdown_refuses_a_file_without_the_markers(tmp_path):
    path = tmp_path / "results.md"
    path.write_text("<!-- results:a -->\n")
    with pytest.raises(ValueError, match="results:a"):
        update_markdown(path, "a", "x")
