// Draws one dashboard file (?board=scaling&prometheus=http://127.0.0.1:9090) with Grafana's own components.
//
// The layout, variables, units, thresholds, overrides and panel chrome are Grafana's. The data source, and what of a panel's plugin is
// not in its libraries (heat map), are ours.
import { createTheme, EventBusSrv, FieldConfigProperty, getDisplayProcessor, identityOverrideProcessor, PanelPlugin, standardEditorsRegistry, standardFieldConfigEditorRegistry, standardTransformersRegistry, standardTransformers, thresholdsOverrideProcessor, unitOverrideProcessor, displayNameOverrideProcessor, toDataFrame, FieldType, LoadingState } from "@grafana/data";
import { setPluginImportUtils, setRunRequest } from "@grafana/runtime";
import { CustomVariable, EmbeddedScene, PanelBuilders, RuntimeDataSource, SceneControlsSpacer, SceneDataTransformer, SceneGridItem, SceneGridLayout, SceneGridRow, SceneQueryRunner, sceneGraph, SceneRefreshPicker, SceneTimePicker, SceneTimeRange, sceneUtils, SceneVariableSet, VariableValueSelectors, VizPanel } from "@grafana/scenes";
import { BigValue, BigValueColorMode, BigValueGraphMode, GlobalStyles, PanelContextProvider, Table, TimeSeries, TooltipPlugin2 } from "@grafana/ui";
import { initPluginTranslations } from "@grafana/i18n";
import React from "react";
import { from as observed, map, startWith } from "rxjs";
import { createRoot } from "react-dom/client";
import { MemoryRouter } from "react-router-dom";
import { ThemeContext } from "@grafana/data";

const query = new URLSearchParams(location.search);
const prometheus = query.get("prometheus") ?? "http://127.0.0.1:9090";
const queries: unknown[] = ((window as any).__queries = []);

async function ask(path: string, parameters: Record<string, string>) {
  const answer = await fetch(`${prometheus}/api/v1/${path}?${new URLSearchParams(parameters)}`);
  const body = await answer.json();
  if (body.status !== "success") throw new Error(body.error);
  return body.data;
}

/** A number as Prometheus writes it; what is not one is no point. */
function number(text: string) {
  const value = Number.parseFloat(text);
  return Number.isFinite(value) ? value : null;
}

class Prometheus extends RuntimeDataSource {
  async query(request: any): Promise<any> {
    const scene = request.scopedVars.__sceneObject?.value?.valueOf();
    const frames = await Promise.all(request.targets.map((target: any) => this.frames(target, request, scene)));
    return { data: frames.flat(), state: LoadingState.Done };
  }

  async frames(target: any, request: any, scene: any) {
    const many = (value: unknown) => (Array.isArray(value) ? (value.length > 1 ? `(${value.join("|")})` : value[0]) : value);
    const expr = sceneGraph.interpolate(scene, target.expr.replaceAll("$__rate_interval", "1m"), undefined, many as any);
    const [from, to] = [request.range.from.valueOf() / 1000, request.range.to.valueOf() / 1000];
    const step = Math.max(5, Math.ceil((to - from) / 240));
    const data = target.instant
      ? await ask("query", { query: expr, time: String(to) })
      : await ask("query_range", { query: expr, start: String(from), end: String(to), step: String(step) });
    queries.push({ expr, series: data.result.length });
    if (target.format === "table") return [this.table(target, data.result)];
    return data.result.map((series: any) => {
      const points = series.values ?? [series.value];
      const legend = target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_: string, label: string) => series.metric[label] ?? "");
      return toDataFrame({
        refId: target.refId,
        name: legend,
        fields: [
          { name: "Time", type: FieldType.time, values: points.map(([time]: [number]) => time * 1000), config: { interval: step * 1000 } },
          { name: "Value", type: FieldType.number, values: points.map(([, text]: [number, string]) => number(text)), labels: series.metric, config: { displayNameFromDS: legend } },
        ],
      });
    });
  }

  table(target: any, result: any[]) {
    const labels = [...new Set(result.flatMap((series) => Object.keys(series.metric)))].filter((label) => label !== "__name__");
    return toDataFrame({
      refId: target.refId,
      fields: [
        { name: "Time", type: FieldType.time, values: result.map((series) => series.value[0] * 1000) },
        ...labels.map((label) => ({ name: label, type: FieldType.string, values: result.map((series) => series.metric[label] ?? "") })),
        { name: `Value #${target.refId}`, type: FieldType.number, values: result.map((series) => number(series.value[1])) },
      ],
    });
  }

  async testDatasource() {
    return { status: "success" };
  }
}

setRunRequest(((source: any, request: any) => {
  const state = (series: any[], state: LoadingState) => ({ state, series, request, timeRange: request.range, annotations: [] });
  return observed(source.query(request)).pipe(map((answer: any) => state(answer.data, LoadingState.Done)), startWith(state([], LoadingState.Loading)));
}) as any);

// ---- what fields can be configured

const editor = () => null;
const property = (id: string, process: any = identityOverrideProcessor) => ({ id, path: id, name: id, editor, override: editor, process, shouldApply: () => true, settings: {} });
standardFieldConfigEditorRegistry.setInit(() => [
  property(FieldConfigProperty.Unit, unitOverrideProcessor), property("min"), property("max"), property("decimals"),
  property("displayName", displayNameOverrideProcessor), property("noValue"), property("color"), property("thresholds", thresholdsOverrideProcessor),
  property("mappings"), property("links"), property("filterable"), property("fieldMinMax"),
] as any);
standardEditorsRegistry.setInit(() => []);
standardTransformersRegistry.setInit(() => [standardTransformers.mergeTransformer, standardTransformers.organizeFieldsTransformer, standardTransformers.renameFieldsTransformer, standardTransformers.orderFieldsTransformer, standardTransformers.filterFieldsByNameTransformer].map((transformation) => ({ id: transformation.id, name: transformation.name, transformation: async () => transformation, editor, imageDark: "", imageLight: "" })) as any);

function plugin(component: React.ComponentType<any>, custom: string[]) {
  const made = new PanelPlugin(component);
  made.useFieldConfig({
    standardOptions: { [FieldConfigProperty.Color]: { settings: { byValueSupport: true } } },
    useCustomConfig: (builder: any) => {
      for (const id of custom) builder.addCustomEditor({ id, path: id, name: id, editor, override: editor, process: identityOverrideProcessor, shouldApply: () => true });
    },
  } as any);
  return made;
}

// ---- panels

const theme = createTheme({ colors: { mode: "dark" } });
const context: any = { eventBus: new EventBusSrv(), eventsScope: "pictures", canAddAnnotations: () => false };

function TimeSeriesPanel({ data, timeRange, timeZone, width, height, options }: any) {
  if (!data.series.length) return <Nothing />;
  return (
    <PanelContextProvider value={context}>
      <TimeSeries frames={data.series} timeRange={timeRange} timeZone={timeZone} width={width} height={height} legend={options.legend} structureRev={data.structureRev} />
    </PanelContextProvider>
  );
}

function StatPanel({ data, width, height, options }: any) {
  const field = data.series[0]?.fields.find((field: any) => field.type === FieldType.number);
  if (!field) return <Nothing />;
  const display = field.display ?? getDisplayProcessor({ field, theme });
  const values = [...field.values].filter((value: unknown) => value !== null);
  const sparkline = options.graphMode === "area" && values.length > 1 ? { y: field, x: data.series[0].fields[0] } : undefined;
  return <BigValue value={display(values.at(-1))} width={width} height={height} theme={theme} colorMode={BigValueColorMode.Value} graphMode={sparkline ? BigValueGraphMode.Area : BigValueGraphMode.None} sparkline={sparkline as any} />;
}

function TablePanel({ data, width, height, options }: any) {
  if (!data.series.length) return <Nothing />;
  return <Table data={data.series[0]} width={width} height={height} initialSortBy={options.sortBy} cellHeight={options.cellHeight} />;
}

/** Buckets as rows, bottom up; what is in a bucket is what is at most its bound, less what is at most the bound before. */
function HeatmapPanel({ data, width, height }: any) {
  const canvas = React.useRef<HTMLCanvasElement>(null);
  const bound = (frame: any) => (frame.name === "+Inf" ? Infinity : Number(frame.name));
  const frames = [...data.series].sort((one, other) => bound(one) - bound(other));
  const cumulative = frames.map((frame: any) => [...frame.fields[1].values].map((value) => value ?? 0));
  let rows = cumulative.map((row, index) => row.map((value, at) => Math.max(0, value - (cumulative[index - 1]?.[at] ?? 0))));
  let names = frames.map((frame: any) => frame.name);
  const used = rows.map((row) => row.some((value) => value > 0));
  const [first, last] = [Math.max(0, used.indexOf(true) - 1), used.lastIndexOf(true) + 2];
  rows = rows.slice(first, last);
  names = names.slice(first, last);
  const left = 64, bottom = 22;
  React.useEffect(() => {
    const draw = canvas.current?.getContext("2d");
    if (!draw || !rows.length) return;
    draw.clearRect(0, 0, width, height);
    const most = Math.max(...rows.flat(), 1e-9);
    const [cell, line] = [(width - left) / rows[0].length, (height - bottom) / rows.length];
    rows.forEach((row, index) => row.forEach((value, at) => {
      if (value <= 0) return;
      draw.fillStyle = `rgba(87, 148, 242, ${0.12 + 0.88 * Math.sqrt(value / most)})`;
      draw.fillRect(left + at * cell, height - bottom - (index + 1) * line + 1, Math.max(1, cell - 0.5), line - 1);
    }));
    draw.fillStyle = "#ccccdc";
    draw.font = "12px sans-serif";
    names.forEach((name: string, index: number) => {
      if (index % Math.ceil(names.length / 8)) return;
      const seconds = Number(name);
      draw.fillText(name === "+Inf" ? "more" : seconds < 1 ? `${Math.round(seconds * 1e5) / 100} ms` : `${seconds} s`, 0, height - bottom - index * line - line / 2 + 4);
    });
    const times = frames[0].fields[0].values;
    for (const share of [0.1, 0.35, 0.6, 0.85]) {
      const at = Math.floor(share * times.length);
      draw.fillText(new Date(times[at]).toISOString().slice(11, 16), left + at * cell, height - 4);
    }
  });
  if (!frames.length) return <Nothing />;
  return <canvas ref={canvas} width={width} height={height} />;
}

function Nothing() {
  return <div style={{ display: "grid", placeItems: "center", height: "100%" }}>No data</div>;
}

const plugins: Record<string, PanelPlugin> = {
  timeseries: plugin(TimeSeriesPanel, ["drawStyle", "lineInterpolation", "lineWidth", "fillOpacity", "gradientMode", "showPoints", "pointSize", "spanNulls", "stacking", "axisPlacement", "axisLabel", "axisSoftMin", "axisSoftMax", "scaleDistribution", "thresholdsStyle", "hideFrom", "lineStyle"]),
  stat: plugin(StatPanel, []),
  table: plugin(TablePanel, ["align", "cellOptions", "inspect", "filterable", "width", "minWidth"]),
  heatmap: plugin(HeatmapPanel, ["hideFrom", "scaleDistribution"]),
};
setPluginImportUtils({ importPanelPlugin: async (id: string) => plugins[id], getPanelPluginFromCache: (id: string) => plugins[id] } as any);
for (const [pluginId, made] of Object.entries(plugins)) {
  made.meta = { id: pluginId, name: pluginId, type: "panel", info: {}, sort: 0, module: "", baseUrl: "" } as any;
  sceneUtils.registerRuntimePanelPlugin({ pluginId, plugin: made });
}
sceneUtils.registerRuntimeDataSource({ dataSource: new Prometheus("prometheus-of-pictures", "prometheus-of-pictures") });

// ---- the board

const datasource = { type: "prometheus-of-pictures", uid: "prometheus-of-pictures" };

function panel(json: any) {
  const $data = new SceneDataTransformer({
    $data: new SceneQueryRunner({ datasource, queries: json.targets.map((target: any) => ({ ...target, datasource })), maxDataPoints: 240 }),
    transformations: json.transformations ?? [],
  });
  const viz = new VizPanel({ pluginId: json.type, title: json.title, description: json.description, options: json.options, fieldConfig: json.fieldConfig, $data });
  const { x, y, w, h } = json.gridPos;
  return new SceneGridItem({ x, y, width: w, height: h, body: viz });
}

async function variable(json: any) {
  const values = ["", ...(json.type === "datasource" ? ["Prometheus"] : [])].filter(Boolean);
  if (json.type === "query") {
    const [, series, label] = /^label_values\((.*), (\w+)\)$/.exec(json.query.query)!;
    values.push(...(await ask(`label/${label}/values`, { "match[]": series.replace(/\$\w+/g, ".*") })));
  }
  const all = json.includeAll ? { includeAll: true, allValue: json.allValue, value: ["$__all"], text: ["All"], isMulti: json.multi } : { value: values[0], text: values[0] };
  return new CustomVariable({ name: json.name, label: json.label, query: values.join(","), ...all } as any);
}

async function main() {
  await initPluginTranslations("pictures");
  const json = await (await fetch(`/boards/${query.get("board")}.json`)).json();
  const variables = await Promise.all(json.templating.list.filter((one: any) => !one.hide).map(variable));
  const children: any[] = [];
  for (const one of json.panels) {
    if (one.type === "row") children.push(new SceneGridRow({ title: one.title, y: one.gridPos.y, children: [], isCollapsed: false }));
    else children.at(-1).setState({ children: [...children.at(-1).state.children, panel(one)] });
  }
  const scene = new EmbeddedScene({
    $variables: new SceneVariableSet({ variables }),
    $timeRange: new SceneTimeRange({ from: query.get("from") ?? "now-15m", to: "now", timeZone: "utc" }),
    controls: [new VariableValueSelectors({}), new SceneControlsSpacer(), new SceneTimePicker({}), new SceneRefreshPicker({ intervals: ["30s"] })],
    body: new SceneGridLayout({ children, isDraggable: false, isResizable: false }),
  });
  createRoot(document.getElementById("root")!).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <MemoryRouter>
        <h1 style={{ margin: "16px 16px 0", fontSize: 20 }}>{json.title}</h1>
        <div style={{ padding: 16 }}><scene.Component model={scene} /></div>
      </MemoryRouter>
    </ThemeContext.Provider>,
  );
}

main().catch((error) => { document.body.textContent = String(error?.stack ?? error); });
